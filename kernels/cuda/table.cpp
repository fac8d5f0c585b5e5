// Host side only: built into the program (which asks before it moves a weight to a device), into the plug-in and into
// the tests.
#include "qalora/kernels/cuda_table.h"

namespace qalora::kernels::cuda {

bool supports(const TiledShape& shape) {
  constexpr int64_t kMost =
      int64_t{1} << 31;  // of each side: kernels number rows and inputs in 32 bits, and their products in 64
  return shape.bits >= 2 && shape.bits <= 4 && shape.group_size > 0 && shape.group_size < kMost &&
         shape.group_size % 32 == 0 && shape.in_features > 0 && shape.in_features < kMost &&
         shape.in_features % 32 == 0 && shape.out_features > 0 && shape.out_features < kMost;
}

const Choice* choose(Operation operation, const TiledShape& shape, int64_t rows, Type type, int architecture) {
  if (!supports(shape)) return nullptr;
  for (const Choice& choice : kTable) {
    const bool fits = choice.operation == operation && rows >= choice.min_rows && rows <= choice.max_rows &&
                      shape.bits >= choice.min_bits && shape.bits <= choice.max_bits &&
                      shape.group_size % choice.group_multiple == 0 && architecture >= choice.min_architecture &&
                      architecture <= choice.max_architecture && (type != Type::kFloat || !choice.sixteen_bits);
    if (fits) return &choice;
  }
  return nullptr;
}

std::string explain(const TiledShape& shape, Type type, int architecture) {
  std::string lines;
  for (const Operation operation : {Operation::kForward, Operation::kBackward}) {
    for (int64_t rows = 1;;) {
      const Choice* choice = choose(operation, shape, rows, type, architecture);
      lines += operation == Operation::kForward ? "forward, rows " : "backward, rows ";
      if (choice == nullptr) {
        lines += std::to_string(rows) + " and more: on the CPU\n";
        break;
      }
      const bool last = choice->max_rows == kAnyRows;
      lines += std::to_string(rows) + (last ? " and more" : " to " + std::to_string(choice->max_rows)) + ": " +
               choice->name + " (" + choice->reason + ")\n";
      if (last) break;
      rows = choice->max_rows + 1;
    }
  }
  return lines;
}

}  // namespace qalora::kernels::cuda
