// What bind.cpp hands to Python of xla.cpp.
#pragma once
#include <utility>
#include <vector>
#include "kernel.h"

namespace softxent {
inline constexpr int64_t OUTSIDE = IGNORED + 2;  // label of a row whose results are NaN
// What a handler is given beside z, as bits.
enum Given { OFF = 1, V = 2, PARTS_READ = 4, TOTAL = 8, PARTS_WRITTEN = 16, LABEL = 32, WITH_ENTROPY = 64 };
const std::vector<std::pair<const char*, void*>>& xla_calls();  // names and handlers
void set_xla_threads(int threads);
}
