# Whether and with what the CUDA plug-in is built. Leaves QALORA_CUDA_BUILT, QALORA_CUDA_MISSING (why not), QALORA_CUDA_TOOLKIT and the
# compiler enabled. A machine without nvcc builds the program all the same; `qalora --version` then says what was missing.
option(QALORA_CUDA "build the CUDA plug-in" ON)
set(QALORA_CUDA_ARCHITECTURES "80;86;89;90" CACHE STRING "compute capabilities to build kernels for (90 = 9.0)")
set(QALORA_CUDA_BUILT OFF)
set(QALORA_CUDA_MISSING "")
set(QALORA_CUDA_TOOLKIT "")

# The CUDA that this LibTorch was built for: kernels and LibTorch share one runtime, so nvcc must be of the same major version.
function(qalora_libtorch_cuda_major result)
  set(${result} "" PARENT_SCOPE)
  if(EXISTS ${LIBTORCH}/lib/libtorch_cuda.so AND EXISTS ${LIBTORCH}/lib/libc10_cuda.so)
    file(STRINGS ${LIBTORCH}/lib/libc10_cuda.so names REGEX "libcudart\\.so\\.[0-9]+" LIMIT_COUNT 1)
    if(names MATCHES "libcudart\\.so\\.([0-9]+)")
      set(${result} ${CMAKE_MATCH_1} PARENT_SCOPE)
    endif()
  endif()
endfunction()

# Tries one nvcc on a line of C++20. `why` is empty when it will do, else what is wrong with it.
function(qalora_try_nvcc nvcc major version why)
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE said ERROR_QUIET RESULT_VARIABLE failed)
  if(failed OR NOT said MATCHES "V([0-9]+)\\.([0-9]+)\\.([0-9]+)")
    set(${why} "${nvcc} does not run" PARENT_SCOPE)
    return()
  endif()
  set(found ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3})
  set(${version} ${found} PARENT_SCOPE)
  if(NOT CMAKE_MATCH_1 EQUAL major)
    set(${why} "${nvcc} is of CUDA ${found}, LibTorch of CUDA ${major}" PARENT_SCOPE)
    return()
  endif()
  if(found VERSION_LESS 12.8)
    set(${why} "${nvcc} is of CUDA ${found}, 12.8 is the oldest that will do" PARENT_SCOPE)
    return()
  endif()
  set(trial ${CMAKE_BINARY_DIR}/cuda_trial)
  file(WRITE ${trial}.cu "#include <cuda_bf16.h>\n#include <type_traits>\ntemplate <typename T> concept Float = std::is_same_v<T, float>;\n"
       "__global__ void scale(float* x) { x[threadIdx.x] *= 2; }\n")
  execute_process(COMMAND ${nvcc} -std=c++20 -arch=sm_80 -c ${trial}.cu -o ${trial}.o OUTPUT_VARIABLE said ERROR_VARIABLE said
    RESULT_VARIABLE failed)
  if(failed)
    string(REGEX REPLACE "[\r\n]+" " " said "${said}")
    string(SUBSTRING "${said}" 0 160 said)
    set(${why} "${nvcc} of CUDA ${found} cannot compile C++20 here: ${said}" PARENT_SCOPE)
  else()
    set(${why} "" PARENT_SCOPE)
  endif()
endfunction()

# The system's nvcc (CUDACXX, PATH, /usr/local/cuda), then the one that scripts/setup.sh put under .deps.
function(qalora_find_nvcc major)
  if(QALORA_NVCC AND EXISTS "${QALORA_NVCC}" AND QALORA_NVCC_FOR STREQUAL "${major}")
    return()  # found by an earlier run of cmake in this folder
  endif()
  find_program(in_path nvcc NO_CACHE)
  file(GLOB packaged ${CMAKE_SOURCE_DIR}/.deps/venv/lib/python3*/site-packages/nvidia/cu${major}/bin/nvcc)
  set(complaint "no nvcc found (CUDACXX, PATH, /usr/local/cuda, .deps)")
  foreach(candidate ${CMAKE_CUDA_COMPILER} $ENV{CUDACXX} ${in_path} /usr/local/cuda/bin/nvcc ${packaged})
    if(NOT EXISTS "${candidate}")
      continue()
    endif()
    qalora_try_nvcc(${candidate} ${major} version why)
    if(why STREQUAL "")
      set(QALORA_NVCC ${candidate} CACHE INTERNAL "the CUDA compiler")
      set(QALORA_NVCC_VERSION ${version} CACHE INTERNAL "its version")
      set(QALORA_NVCC_FOR ${major} CACHE INTERNAL "the CUDA of the LibTorch it was found for")
      return()
    endif()
    set(complaint "${why}")
  endforeach()
  unset(QALORA_NVCC CACHE)
  set(QALORA_CUDA_MISSING "${complaint}" PARENT_SCOPE)
endfunction()

if(NOT QALORA_CUDA)
  set(QALORA_CUDA_MISSING "built with QALORA_CUDA=OFF")
else()
  qalora_libtorch_cuda_major(QALORA_CUDA_MAJOR)
  if(NOT QALORA_CUDA_MAJOR)
    set(QALORA_CUDA_MISSING "the LibTorch in use has no CUDA")
  else()
    qalora_find_nvcc(${QALORA_CUDA_MAJOR})
  endif()
endif()

if(NOT QALORA_CUDA_MISSING)
  get_filename_component(toolkit ${QALORA_NVCC} REALPATH)
  get_filename_component(toolkit ${toolkit}/../.. ABSOLUTE)
  # By its full name: packages carry no libcudart.so. LibTorch's own copy first, it is the one that is loaded in the end.
  find_file(QALORA_CUDART libcudart.so.${QALORA_CUDA_MAJOR} NO_DEFAULT_PATH
    PATHS ${LIBTORCH}/../nvidia/cu${QALORA_CUDA_MAJOR}/lib ${LIBTORCH}/../nvidia/cuda_runtime/lib ${LIBTORCH}/lib ${toolkit}/lib64
          ${toolkit}/lib ${toolkit}/targets/x86_64-linux/lib /usr/lib/x86_64-linux-gnu)
  if(NOT QALORA_CUDART)
    set(QALORA_CUDA_MISSING "libcudart.so.${QALORA_CUDA_MAJOR} is neither beside LibTorch nor beside ${QALORA_NVCC}")
  endif()
endif()

if(QALORA_CUDA_MISSING)
  message(STATUS "CUDA: not built: ${QALORA_CUDA_MISSING}")
else()
  set(QALORA_CUDA_BUILT ON)
  set(QALORA_CUDA_TOOLKIT ${QALORA_NVCC_VERSION})
  set(CMAKE_CUDA_COMPILER ${QALORA_NVCC})
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # LibTorch's shared one is named below; a second, static one would have its own state
  # Machine code for each, and PTX of the newest for devices that come later.
  list(SORT QALORA_CUDA_ARCHITECTURES COMPARE NATURAL)
  list(TRANSFORM QALORA_CUDA_ARCHITECTURES APPEND -real OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
  list(GET QALORA_CUDA_ARCHITECTURES -1 newest)
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
  set(CMAKE_CUDA_FLAGS "$ENV{CUDAFLAGS} -L${toolkit}/lib")  # for CMake's own trials: packages keep libcudadevrt there, not in lib64
  enable_language(CUDA)
  set(CMAKE_CUDA_FLAGS "$ENV{CUDAFLAGS}")
  set(CMAKE_CUDA_FLAGS_RELEASE "")
  set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "")
  set(CMAKE_CUDA_FLAGS_DEBUG "")
  list(JOIN QALORA_CUDA_ARCHITECTURES ", " architectures)
  message(STATUS "CUDA: ${QALORA_NVCC} ${QALORA_CUDA_TOOLKIT} for ${architectures}")
endif()

# What the program and the plug-in must agree on.
set(contract_files include/qalora/tensor/accelerator.h include/qalora/kernels/cuda.h include/qalora/kernels/packed.h)
set(contract "")
foreach(file ${contract_files})
  file(SHA256 ${CMAKE_SOURCE_DIR}/${file} hash)
  string(APPEND contract ${hash})
endforeach()
file(STRINGS ${LIBTORCH}/include/torch/headeronly/version.h torch_version REGEX "TORCH_VERSION_(MAJOR|MINOR|PATCH)")
string(SHA256 contract "${contract}${torch_version}${CMAKE_CXX_COMPILER_ID}")
string(SUBSTRING ${contract} 0 16 contract)
set(QALORA_CUDA_CONTRACT "${PROJECT_VERSION}-${contract}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${contract_files})
list(JOIN QALORA_CUDA_ARCHITECTURES ", " QALORA_CUDA_ARCHITECTURE_LIST)
configure_file(cmake/cuda_build.h.in generated/cuda_build.h)

# libqalora_cuda.so: the kernels and LibTorch's CUDA side. The program opens it at run time (src/tensor/accelerator.cpp).
function(qalora_cuda_plugin)
  file(GLOB kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
  add_library(qalora_cuda_kernels OBJECT ${kernels})
  target_include_directories(qalora_cuda_kernels PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR})
  # ptxas says what each kernel takes; the launcher keeps that beside the object for scripts/kernel_report.py.
  target_compile_options(qalora_cuda_kernels PRIVATE -std=c++20 -O3 -lineinfo -Xptxas -v -Xcompiler -Wall,-Wextra,-Wno-unused-parameter
    $<$<BOOL:${QALORA_WERROR}>:-Werror=all-warnings>)
  set_target_properties(qalora_cuda_kernels PROPERTIES CUDA_VISIBILITY_PRESET hidden
    CUDA_COMPILER_LAUNCHER "python3;${CMAKE_SOURCE_DIR}/scripts/nvcc_launcher.py;${CCACHE}")

  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/cuda/*.cpp)
  add_library(qalora_cuda SHARED ${sources} $<TARGET_OBJECTS:qalora_cuda_kernels>)
  target_include_directories(qalora_cuda PRIVATE ${CMAKE_SOURCE_DIR}/include)
  target_include_directories(qalora_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_definitions(qalora_cuda PRIVATE QALORA_CUDA_CONTRACT="${QALORA_CUDA_CONTRACT}")
  set_target_properties(qalora_cuda PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON LINKER_LANGUAGE CXX
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_link_libraries(qalora_cuda PRIVATE qalora_kernels libtorch ${LIBTORCH}/lib/libtorch_cuda.so ${LIBTORCH}/lib/libc10_cuda.so
    ${QALORA_CUDART})
  # Only what the plug-in itself leaves open is an error: LibTorch's own needs (cuBLAS, cuDNN, ...) are met on the machine with the GPU.
  target_link_options(qalora_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,--no-undefined -Wl,--unresolved-symbols=ignore-in-shared-libs
    -Wl,-rpath,${LIBTORCH}/../nvidia/cu${QALORA_CUDA_MAJOR}/lib)
endfunction()
