// MMLU's questions and how each protocol writes them down (Hendrycks et al., arXiv:2009.03300).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/core/file.h"

namespace qalora::eval {

// hendrycks: the original evaluate.py. qlora: the callback of QLoRA and QA-LoRA. lm-eval: the lm-evaluation-harness.
enum class Protocol { kHendrycks, kQlora, kLmEval };
std::string protocol_name(Protocol protocol);    // "hendrycks", "qlora", "lm-eval"
Protocol parse_protocol(std::string_view name);  // UserError with the nearest name

enum class Category { kHumanities, kStem, kSocialSciences, kOther };
inline constexpr Category kCategories[] = {Category::kHumanities, Category::kStem, Category::kSocialSciences,
                                           Category::kOther};
std::string category_name(Category category);  // "humanities", "stem", "social_sciences", "other"
// As in the original categories.py; nothing for a subject outside the 57.
std::optional<Category> category_of(std::string_view subject);

struct MmluQuestion {
  int64_t index = 0;      // row in the subject's test file, or line in QLoRA's file, from 0
  std::string text;       // the question as the prompt ends with it, up to "Answer:"
  int answer = 0;         // 0 .. 3
  int64_t own_shots = 0;  // worked examples that are part of `text` (QLoRA's five-shot files)
  std::string where;      // "file:line", for messages
};

struct MmluSubject {
  std::string name;
  std::string header;                 // "The following are ..." with its blank line
  std::vector<std::string> examples;  // worked examples with answer and blank line, in file order
  std::vector<MmluQuestion> questions;
};

struct MmluSource {
  fs::path data;  // a folder with dev/ and test/ (or val/), or (qlora only) QLoRA's JSON-Lines file
  Protocol protocol = Protocol::kHendrycks;
  std::optional<int64_t> shots = std::nullopt;  // default: 5 from a folder, what the file holds from a file
  std::vector<std::string> subjects = {};       // empty: all
  int64_t limit = 0;                            // questions a subject; 0: all
  std::string split = "test";                   // of a folder: SPLIT/SUBJECT_SPLIT.csv is asked
};

// Subjects in alphabetical order from a folder, in order of appearance from a file. With a file and shots > 0 the
// worked examples come from dev/ beside the file. DataError names file and line of a bad row; UserError for an unknown
// subject.
std::vector<MmluSubject> read_mmlu(const MmluSource& source);

// Questions in one of the folder's files. DataError as above.
int64_t count_questions(const fs::path& path);

// The prompt with the first `shots` examples. shots <= subject.examples.size()
std::string mmlu_prompt(const MmluSubject& subject, const MmluQuestion& question, size_t shots);

}  // namespace qalora::eval
