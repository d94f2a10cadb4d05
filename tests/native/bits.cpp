// Prints a hash of all results of the kernel of one instruction set on generated data. It needs no Python, so that test_native.py can run it
// for other processors, in an emulator. Build: g++ -std=c++17 -O3 -ffp-contract=off -DSOFTXENT_NAME=generic -I cpp tests/native/bits.cpp cpp/kernel.cpp
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <initializer_list>
#include "kernel.h"
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
namespace softxent { extern const Isa JOIN(isa_, SOFTXENT_NAME); }
using namespace softxent;

static uint64_t seed = 1, hash = 14695981039346656037u;
static uint32_t next() { return seed = seed * 6364136223846793005u + 1442695040888963407u, (uint32_t)(seed >> 33); }
static void add(const void* p, size_t n) { for (size_t i = 0; i < n; i++) hash = (hash ^ ((const unsigned char*)p)[i]) * 1099511628211u; }
static void store(void* p, int type, double d) {
  float f = d; uint32_t b; memcpy(&b, &f, 4);
  uint16_t h = type == BF16 ? b >> 16 : 0x3c00 | (b >> 13 & 0x3ff) | (b >> 16 & 0x8000);      // float16: +-[1, 2)
  memcpy(p, type == F64 ? (void*)&d : type == F32 ? (void*)&f : (void*)&h, type == F64 ? 8 : type == F32 ? 4 : 2);
}

struct Case {
  int cols, type, off;
  double temperature, cap;
};

static void run(const Case& c) {
  const int R = 19, C = c.cols;  // more than a tile of rows
  const size_t size = c.type == F64 ? 8 : c.type == F32 ? 4 : 2, math = c.type == F64 ? 8 : 4;
  char *z = (char*)malloc(size * R * C), *dz = (char*)malloc(size * R * C), *off = (char*)malloc(math * R * C), *v = (char*)malloc(math * R * C);
  void* scratch = aligned_alloc(64, (scratch_bytes(C, c.cap > 0) + 63) / 64 * 64);
  for (int i = 0; i < R; i++) {
    const double spread = next() % 4 ? 500 : 100, shift = next() % 3 ? 0 : 300;
    for (int k = 0; k < C; k++) store(z + size * (i * C + k), c.type, (next() % 20001 - 10000.) / spread + shift);
  }
  for (int i = 0; i < R * C; i++) {
    store(off + math * i, c.type == F64 ? F64 : F32, (next() % 1000) / 1e6);
    store(v + math * i, c.type == F64 ? F64 : F32, (next() % 1000) / 1e3 - 0.5);
  }
  int64_t label[R];
  double numbers[NUMBERS][R], result[OUTPUTS][R], parts[PARTS][R];
  for (int i = 0; i < R; i++) {
    label[i] = i == 3 ? IGNORED : i == 5 ? LARGEST : (int64_t)(next() % (C + 2)) - 1;
    for (int k = 0; k < NUMBERS; k++) numbers[k][i] = (next() % 1000) / 1000.;
  }
  Job j = {};
  j.rows = R;
  j.cols = C;
  j.z = z;
  j.v = v;
  j.dz = dz;
  j.z_step = j.v_step = j.dz_step = C;
  j.z_column = j.v_column = j.dz_column = j.off_column = 1;
  j.label = label;
  j.label_step = 1;
  j.numbers = numbers[0];
  j.number_count = NUMBERS;
  j.number_step = R;
  j.number_row = 1;
  j.off = c.off ? off : nullptr;
  j.off_by_row = c.off == 2;
  j.off_step = c.off == 2 ? C : 0;
  j.result = result[0];
  j.result_count = OUTPUTS;
  j.result_step = R;
  j.parts = parts[0];
  j.parts_step = R;
  j.temperature = c.temperature;
  j.capped = c.cap > 0;
  j.cap = j.capped ? c.cap : __builtin_inf();
  j.unit = j.capped ? 1 / c.cap : 1;
  j.scale = (c.cap > 0 ? c.cap : 1) / c.temperature;
  j.type = (Type)c.type;
  j.off_type = c.type == F64 ? F64 : F32;
  j.entropy = true;
  uint64_t backward = 0;
  for (int op : {FORWARD, BACKWARD, FUSED, CURVATURE, LOG_SOFTMAX}) {
    JOIN(isa_, SOFTXENT_NAME).run[c.type == F64][op](j, 0, R, scratch, ALL, 0);
    for (double* a : {result[0], parts[0]}) for (int i = 0; i < (a == parts[0] ? PARTS : OUTPUTS) * R; i++) if (a[i] != a[i]) a[i] = 0;  // the sign of a NaN depends on the processor
    add(result, sizeof result);
    add(parts, sizeof parts);
    if (op == FORWARD) continue;
    const uint64_t before = hash;
    hash = 1;
    add(dz, size * R * C);
    if (op == BACKWARD) backward = hash;
    if (op == FUSED && backward != hash) {
      printf("fused and backward differ: C %d type %d\n", C, c.type);
      exit(1);
    }
    hash ^= before;
  }
  free(z);
  free(dz);
  free(off);
  free(v);
  free(scratch);
}

int main() {
  for (int cols : {1, 2, 10, 17, 64, 65, 200, 1000, 4097, 9000})
    for (int type = 0; type < TYPES; type++)
      for (int off = 0; off < 3; off++)
        for (int transform = 0; transform < 3; transform++)
          if (cols <= 1000 || off == transform)  // an emulator takes long for all
            run({cols, type, off, transform == 1 ? 0.7 : 1, transform == 2 ? 30. : 0});
  printf("%016llx\n", (unsigned long long)hash);
}
