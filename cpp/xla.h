// What bind.cpp hands to Python of xla.cpp.
#pragma once
#include <utility>
#include <vector>

namespace softxent {
const std::vector<std::pair<const char*, void*>>& xla_calls();  // names and handlers
void set_xla_threads(int threads);
}
