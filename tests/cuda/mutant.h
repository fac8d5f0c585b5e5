// What a broken copy of a kernel file says about itself (mutate.py adds the entry).
#pragma once

#include "qalora/kernels/cuda.h"

namespace qalora::test::cuda {

struct Mutant {
  const char* id;
  const char* check;                       // the check that must catch it, or ""
  bool dies;                               // by a memory error that a sanitizer reports
  void (*apply)(kernels::cuda::Api& api);  // puts the broken functions into a table
};
void add_mutant(const Mutant& mutant);

struct MutantEntry {
  MutantEntry(const char* id, const char* check, bool dies, void (*apply)(kernels::cuda::Api&)) {
    add_mutant({id, check, dies, apply});
  }
};

}  // namespace qalora::test::cuda
