# Compiles for Linux with the C library of 2012, on any Linux: zig brings the compiler, a static C++ library and the symbols of glibc 2.17.
# tools/wheels.py sets SOFTXENT_ARCH, and SOFTXENT_ZIG: a folder with the program zig and the scripts ar and ranlib.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{SOFTXENT_ARCH})
set(CMAKE_CXX_COMPILER $ENV{SOFTXENT_ZIG}/zig c++ -target $ENV{SOFTXENT_ARCH}-linux-gnu.2.17)
set(CMAKE_AR $ENV{SOFTXENT_ZIG}/ar)
set(CMAKE_RANLIB $ENV{SOFTXENT_ZIG}/ranlib)
# nanobind 3.1 uses stderr, and with the stable interface does not include what declares it
set(CMAKE_CXX_FLAGS_INIT "-include cstdio -idirafter $ENV{SOFTXENT_ZIG}/include")
