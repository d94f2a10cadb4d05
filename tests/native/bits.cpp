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

int main() {
  const int R = 19;                    // more than a tile
  for (int C : {1, 2, 10, 17, 64, 65, 200, 1000, 4097, 9000}) for (int type = 0; type < TYPES; type++) for (int offs = 0; offs < 3; offs++) {
    const size_t size = type == F64 ? 8 : type == F32 ? 4 : 2, math = type == F64 ? 8 : 4;
    char *z = (char*)malloc(size * R * C), *dz = (char*)malloc(size * R * C), *off = (char*)malloc(math * R * C);
    void* scratch = aligned_alloc(64, (scratch_bytes(C) + 63) / 64 * 64);
    for (int i = 0; i < R; i++) {
      const double spread = next() % 4 ? 500 : 100, shift = next() % 3 ? 0 : 300;
      for (int k = 0; k < C; k++) store(z + size * (i * C + k), type, (next() % 20001 - 10000.) / spread + shift);
    }
    for (int i = 0; i < R * C; i++) { double d = (next() % 1000) / 1e6; float f = d; memcpy(off + math * i, type == F64 ? (void*)&d : (void*)&f, math); }
    int64_t label[R]; double truth[TRUTHS][R], loss[R], lse[R], parts[PARTS][R];
    for (int i = 0; i < R; i++) {
      label[i] = (int64_t)(next() % (C + 2)) - 1;
      for (int k = 0; k < TRUTHS; k++) truth[k][i] = i == 3 && k != G ? 0 : (next() % 1000) / 1000.;
    }
    Job j = {R, C, z, C, dz, C, label, 1, truth[0], R, 1, offs ? off : nullptr, offs == 2 ? C : 0, loss, lse, parts[0], R, false, false};
    uint64_t backward = 0;
    for (int op : {FORWARD, BACKWARD, FUSED}) {
      JOIN(isa_, SOFTXENT_NAME).run[type][WIDE][op](j, 0, R, scratch, ALL, 0);
      for (double* a : {loss, lse, parts[0]}) for (int i = 0; i < (a == parts[0] ? PARTS * R : R); i++) if (a[i] != a[i]) a[i] = 0;   // the sign of a NaN depends on the processor
      add(loss, sizeof loss); add(lse, sizeof lse); add(parts, sizeof parts);
      if (op == FORWARD) continue;
      const uint64_t before = hash; hash = 1; add(dz, size * R * C);
      if (op == BACKWARD) backward = hash;
      else if (backward != hash) { printf("fused and backward differ: C %d type %d\n", C, type); return 1; }
      hash ^= before;
    }
    free(z); free(dz); free(off); free(scratch);
  }
  printf("%016llx\n", (unsigned long long)hash);
}
