# Third-party libraries. LibTorch is whatever LIBTORCH names (a folder with include/ and lib/), by default the torch package
# that scripts/setup.sh put under .deps. Its own CMake package is not used: it insists on a system CUDA even for CPU work.
find_package(Threads REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 2.1 REQUIRED)

set(LIBTORCH "$ENV{LIBTORCH}" CACHE PATH "folder of a LibTorch: include/ and lib/")
if(NOT LIBTORCH)
  file(GLOB found ${CMAKE_SOURCE_DIR}/.deps/venv/lib/python3*/site-packages/torch)
  if(NOT found)
    message(FATAL_ERROR "no LibTorch: run scripts/setup.sh, or set LIBTORCH to a folder that holds its include/ and lib/")
  endif()
  list(GET found 0 LIBTORCH)
endif()
if(NOT EXISTS ${LIBTORCH}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "LIBTORCH=${LIBTORCH} has no lib/libtorch_cpu.so")
endif()
message(STATUS "LibTorch: ${LIBTORCH}")

find_path(SENTENCEPIECE_INCLUDE sentencepiece_processor.h REQUIRED)
find_library(SENTENCEPIECE_LIBRARY sentencepiece REQUIRED)
# Byte-level BPE: words are cut by PCRE2 (10.40 is the first that knows the property White_Space), texts normalised by utf8proc.
find_path(PCRE2_INCLUDE pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY pcre2-8 REQUIRED)
file(STRINGS ${PCRE2_INCLUDE}/pcre2.h pcre2_version REGEX "#define PCRE2_M(AJOR|INOR)")
string(REGEX REPLACE "[^0-9]*2_MAJOR *([0-9]+).*2_MINOR *([0-9]+).*" "\\1.\\2" pcre2_version "${pcre2_version}")
if(pcre2_version VERSION_LESS 10.40)
  message(FATAL_ERROR "PCRE2 ${pcre2_version} in ${PCRE2_INCLUDE} is too old; 10.40 or newer is needed (libpcre2-dev)")
endif()
find_path(UTF8PROC_INCLUDE utf8proc.h REQUIRED)
find_library(UTF8PROC_LIBRARY utf8proc REQUIRED)

add_library(libtorch INTERFACE)
target_include_directories(libtorch SYSTEM INTERFACE ${LIBTORCH}/include ${LIBTORCH}/include/torch/csrc/api/include)
# libtorch_cpu pulls the rest by its own RUNPATH; libtorch_cuda is not linked, so the program starts fast.
target_link_libraries(libtorch INTERFACE ${LIBTORCH}/lib/libtorch_cpu.so ${LIBTORCH}/lib/libc10.so Threads::Threads)
target_link_options(libtorch INTERFACE -Wl,-rpath,${LIBTORCH}/lib -Wl,--no-as-needed)
target_compile_definitions(libtorch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
# at::parallel_for is a template that runs on one thread unless the file that uses it is compiled for OpenMP. LibTorch's own OpenMP library
# is the one to link: a second one would not know which threads are at work already. It is gcc's, which other compilers do not speak: what
# they build computes the same on one thread.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  file(GLOB openmp ${LIBTORCH}/lib/libgomp*.so*)
  if(NOT openmp)
    set(openmp gomp)
  endif()
  target_compile_options(libtorch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_libraries(libtorch INTERFACE ${openmp})
endif()
