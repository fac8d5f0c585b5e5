# One static library a room (see README, "How the code is laid out"). A room links only rooms below it.
function(qalora_room name)
  cmake_parse_arguments(ROOM "NO_TORCH" "" "SOURCES;LINKS" ${ARGN})
  if(NOT ROOM_SOURCES)  # a room that is still empty
    add_library(qalora_${name} INTERFACE)
    target_link_libraries(qalora_${name} INTERFACE ${ROOM_LINKS})
    return()
  endif()
  add_library(qalora_${name} STATIC ${ROOM_SOURCES})
  target_include_directories(qalora_${name} PUBLIC ${CMAKE_SOURCE_DIR}/include)
  target_link_libraries(qalora_${name} PUBLIC ${ROOM_LINKS})
  if(NOT ROOM_NO_TORCH)
    target_precompile_headers(qalora_${name} REUSE_FROM qalora_precompiled)
  endif()
endfunction()

# The LibTorch headers take 20 s a file; they are compiled once, here, and reused by every room above `kernels`.
add_library(qalora_precompiled STATIC src/precompiled.cpp)
target_link_libraries(qalora_precompiled PUBLIC libtorch nlohmann_json::nlohmann_json)
target_include_directories(qalora_precompiled PUBLIC include)
target_precompile_headers(qalora_precompiled PRIVATE src/precompiled.h)

foreach(room core tensor io text quant model export train eval generate cli)
  file(GLOB sources CONFIGURE_DEPENDS src/${room}/*.cpp)
  set(SOURCES_${room} ${sources})
endforeach()
file(GLOB kernel_sources CONFIGURE_DEPENDS kernels/*.cpp kernels/reference/*.cpp kernels/cpu/*.cpp kernels/cuda/*.cpp)
# One file an instruction set, each compiled for it; kernels/cpu/dispatch.cpp chooses at run time. No multiply-add is fused behind our
# back: every instruction set dequantises to the same bits. GCC 12 warns inside its own AVX-512 headers (its bug 105593).
set_source_files_properties(kernels/cpu/avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
set_source_files_properties(kernels/cpu/avx512.cpp PROPERTIES COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-Wno-uninitialized;-Wno-maybe-uninitialized")

qalora_room(core NO_TORCH SOURCES ${SOURCES_core} LINKS Threads::Threads)
qalora_room(kernels NO_TORCH SOURCES ${kernel_sources})
target_compile_options(qalora_kernels PRIVATE -ffp-contract=off)
qalora_room(tensor SOURCES ${SOURCES_tensor} LINKS qalora_precompiled qalora_core ${CMAKE_DL_LIBS})
set_source_files_properties(src/tensor/cuda_build.cpp PROPERTIES INCLUDE_DIRECTORIES ${CMAKE_BINARY_DIR}/generated)
if(QALORA_CUDA_BUILT)
  qalora_cuda_plugin()
endif()
qalora_room(io SOURCES ${SOURCES_io} LINKS qalora_tensor qalora_kernels)
qalora_room(text SOURCES ${SOURCES_text} LINKS qalora_io ${SENTENCEPIECE_LIBRARY} ${PCRE2_LIBRARY} ${UTF8PROC_LIBRARY})
target_include_directories(qalora_text SYSTEM PRIVATE ${SENTENCEPIECE_INCLUDE} ${PCRE2_INCLUDE} ${UTF8PROC_INCLUDE})
# Debian's SentencePiece and LibTorch's c10 both export FLAGS_minloglevel, of 32 bytes and of 4. The library named first wins for
# both: c10 only reads its number, while SentencePiece in c10's place would overwrite what lies behind it (the switch that makes
# every failed allocation abort the process). Hence SentencePiece before everything else.
target_link_options(qalora_text INTERFACE -Wl,--no-as-needed ${SENTENCEPIECE_LIBRARY})
qalora_room(quant SOURCES ${SOURCES_quant} LINKS qalora_io qalora_kernels)
qalora_room(model SOURCES ${SOURCES_model} LINKS qalora_quant qalora_text)
qalora_room(export SOURCES ${SOURCES_export} LINKS qalora_model)
qalora_room(train SOURCES ${SOURCES_train} LINKS qalora_model)
qalora_room(eval SOURCES ${SOURCES_eval} LINKS qalora_model)
qalora_room(generate SOURCES ${SOURCES_generate} LINKS qalora_model)
qalora_room(cli SOURCES ${SOURCES_cli} LINKS qalora_train qalora_eval qalora_generate qalora_export CLI11::CLI11)
include(cmake/version.cmake)
set_source_files_properties(src/cli/version.cpp PROPERTIES
  COMPILE_DEFINITIONS "QALORA_VERSION=\"${PROJECT_VERSION}\";QALORA_COMMIT=\"${QALORA_COMMIT}\"")
