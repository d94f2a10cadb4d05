// cpp/ffi.h beside the header of XLA that jaxlib brings: the sizes, offsets and codes are the same. Compiling it is the test.
#include "ffi.h"
#include "xla/ffi/api/c_api.h"

#define SIZE(ours, theirs) static_assert(sizeof(softxent::ffi::ours) == sizeof(theirs))
#define FIELD(ours, a, theirs, b) \
  static_assert(offsetof(softxent::ffi::ours, a) == offsetof(theirs, b) && sizeof(softxent::ffi::ours::a) == sizeof(theirs::b))
#define CODE(ours, theirs) static_assert((int)softxent::ffi::ours == (int)theirs)

static_assert(softxent::ffi::VERSION.major == XLA_FFI_API_MAJOR && softxent::ffi::VERSION.minor <= XLA_FFI_API_MINOR);
CODE(METADATA, XLA_FFI_Extension_Metadata);
CODE(PRED, XLA_FFI_DataType_PRED);
CODE(S32, XLA_FFI_DataType_S32);
CODE(S64, XLA_FFI_DataType_S64);
CODE(U32, XLA_FFI_DataType_U32);
CODE(F16, XLA_FFI_DataType_F16);
CODE(F32, XLA_FFI_DataType_F32);
CODE(F64, XLA_FFI_DataType_F64);
CODE(BF16, XLA_FFI_DataType_BF16);
CODE(BUFFER, XLA_FFI_ArgType_BUFFER);
CODE(BUFFER, XLA_FFI_RetType_BUFFER);
CODE(ARRAY, XLA_FFI_AttrType_ARRAY);
CODE(RESOURCE_EXHAUSTED, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
CODE(INTERNAL, XLA_FFI_Error_Code_INTERNAL);
SIZE(DataType, XLA_FFI_DataType);
SIZE(Version, XLA_FFI_Api_Version);
FIELD(Version, major, XLA_FFI_Api_Version, major_version);
FIELD(Version, minor, XLA_FFI_Api_Version, minor_version);
FIELD(Metadata, version, XLA_FFI_Metadata, api_version);
FIELD(Metadata, traits, XLA_FFI_Metadata, traits);
FIELD(MetadataExtension, base, XLA_FFI_Metadata_Extension, extension_base);
FIELD(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);
FIELD(NewError, message, XLA_FFI_Error_Create_Args, message);
FIELD(NewError, code, XLA_FFI_Error_Create_Args, errc);
FIELD(Api, version, XLA_FFI_Api, api_version);
FIELD(Api, create, XLA_FFI_Api, XLA_FFI_Error_Create);
SIZE(Buffer, XLA_FFI_Buffer);
FIELD(Buffer, type, XLA_FFI_Buffer, dtype);
FIELD(Buffer, data, XLA_FFI_Buffer, data);
FIELD(Buffer, rank, XLA_FFI_Buffer, rank);
FIELD(Buffer, dims, XLA_FFI_Buffer, dims);
SIZE(Buffers, XLA_FFI_Args);
FIELD(Buffers, count, XLA_FFI_Args, size);
FIELD(Buffers, kinds, XLA_FFI_Args, types);
FIELD(Buffers, items, XLA_FFI_Args, args);
SIZE(Buffers, XLA_FFI_Rets);
FIELD(Buffers, count, XLA_FFI_Rets, size);
FIELD(Buffers, kinds, XLA_FFI_Rets, types);
FIELD(Buffers, items, XLA_FFI_Rets, rets);
SIZE(Attributes, XLA_FFI_Attrs);
FIELD(Attributes, count, XLA_FFI_Attrs, size);
FIELD(Attributes, kinds, XLA_FFI_Attrs, types);
FIELD(Attributes, names, XLA_FFI_Attrs, names);
FIELD(Attributes, items, XLA_FFI_Attrs, attrs);
SIZE(Text, XLA_FFI_ByteSpan);
FIELD(Text, begin, XLA_FFI_ByteSpan, ptr);
FIELD(Text, size, XLA_FFI_ByteSpan, len);
SIZE(Array, XLA_FFI_Array);
FIELD(Array, type, XLA_FFI_Array, dtype);
FIELD(Array, count, XLA_FFI_Array, size);
FIELD(Array, data, XLA_FFI_Array, data);
FIELD(Frame, extension, XLA_FFI_CallFrame, extension_start);
FIELD(Frame, api, XLA_FFI_CallFrame, api);
FIELD(Frame, stage, XLA_FFI_CallFrame, stage);
FIELD(Frame, arguments, XLA_FFI_CallFrame, args);
FIELD(Frame, results, XLA_FFI_CallFrame, rets);
FIELD(Frame, attributes, XLA_FFI_CallFrame, attrs);
