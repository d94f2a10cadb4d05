// XLA's C interface for custom calls, as much of it as xla.cpp uses, so that nothing of jaxlib is needed to compile it. It is that of version 0.3,
// of jaxlib 0.10: XLA accepts the handlers of older versions, but not of newer ones. A struct of XLA begins with its size and grows at its end.
// tests/test_native.py compares these declarations with the headers of the jaxlib at hand.
#pragma once
#include <cstddef>
#include <cstdint>

// The size of a struct up to a field, which is the last that is used here.
#define FFI_SIZE(name, field) (offsetof(name, field) + sizeof(name::field))

namespace softxent::ffi {
enum DataType : int { PRED = 1, S32 = 4, S64 = 5, U32 = 8, F16 = 10, F32 = 11, F64 = 12, BF16 = 16 };
enum Kind : int { BUFFER = 1, ARRAY = 1 };  // of an argument or result; of an attribute
enum Code : int { RESOURCE_EXHAUSTED = 8, INTERNAL = 13 };
static constexpr int METADATA = 1;

struct Error;  // XLA's own
struct Extension {
  size_t size;
  int type;
  Extension* next;
};
struct Version {
  size_t size;
  Extension* extension;
  int major, minor;
};
struct Metadata {
  size_t size;
  Version version;
  uint32_t traits;
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};
struct NewError {
  size_t size;
  Extension* extension;
  const char* message;
  Code code;
};
struct Api {
  size_t size;
  Extension* extension;
  Version version;
  const void* internal;
  Error* (*create)(NewError*);
};
struct Buffer {
  size_t size;
  Extension* extension;
  DataType type;
  void* data;
  int64_t rank;
  const int64_t* dims;

  int64_t count() const {
    int64_t n = 1;
    for (int64_t i = 0; i < rank; i++) n *= dims[i];
    return n;
  }
};
struct Buffers {  // arguments, or results
  size_t size;
  Extension* extension;
  int64_t count;
  const Kind* kinds;
  const Buffer* const* items;
};
struct Text {
  const char* begin;
  size_t size;
};
struct Array {
  DataType type;
  size_t count;
  const void* data;
};
struct Attributes {
  size_t size;
  Extension* extension;
  int64_t count;
  const Kind* kinds;
  const Text* const* names;
  const Array* const* items;  // where their kind is ARRAY
};
struct Frame {
  size_t size;
  Extension* extension;
  const Api* api;
  void* context;
  int stage;  // execution, for the other stages have no handlers
  Buffers arguments, results;
  Attributes attributes;
};
static constexpr Version VERSION = {sizeof(Version), nullptr, 0, 3};
}
