#include "qalora/eval/mmlu_data.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/eval/blanks.h"
#include "qalora/eval/json_lines.h"
#include "qalora/text/dataset.h"

namespace qalora::eval {
namespace {

constexpr int64_t kDefaultShots = 5;

struct CategorySubjects {
  Category category;
  std::vector<std::string_view> subjects;
};

const std::vector<CategorySubjects>& category_table() {
  static const std::vector<CategorySubjects> table = {
      {Category::kHumanities,
       {"formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
        "prehistory", "professional_law", "world_religions"}},
      {Category::kStem,
       {"abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
        "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
        "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning"}},
      {Category::kSocialSciences,
       {"econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
        "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
        "public_relations", "security_studies", "sociology", "us_foreign_policy"}},
      {Category::kOther,
       {"anatomy", "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging",
        "management", "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
        "professional_medicine", "virology"}},
  };
  return table;
}

// "abstract_algebra" -> " abstract algebra". The original puts this behind "about ", hence two blanks there; the
// harness one.
std::string header_of(const std::string& subject, Protocol protocol) {
  std::string words;
  for (const auto& part : split(subject, '_')) words += " " + part;
  if (protocol == Protocol::kLmEval) words.erase(0, 1);
  return "The following are multiple choice questions (with answers) about " + words + ".\n\n";
}

std::string strip(const std::string& text) {
  const size_t begin = leading_blanks(text);
  return begin == text.size() ? "" : text.substr(begin, text.size() - begin - trailing_blanks(text));
}

struct CsvRow {
  std::string text;  // up to "Answer:"
  int answer;
  std::string where;
};

std::vector<CsvRow> read_questions(const fs::path& path, Protocol protocol) {
  std::vector<CsvRow> rows;
  text::read_csv(path, [&](std::vector<std::string>& cells, int64_t line) {
    if (cells.size() == 1 && cells[0].empty()) return;  // a blank line
    const std::string where = message(path.string(), ":", line);
    QALORA_REQUIRE(cells.size() == 6, DataError, where,
                   ": expected 6 cells (question, four choices, answer letter), got ", cells.size());
    const std::string& letter = cells[5];
    QALORA_REQUIRE(letter.size() == 1 && letter[0] >= 'A' && letter[0] <= 'D', DataError, where,
                   ": the answer must be A, B, C or D, got '", letter, "'");
    std::string text = protocol == Protocol::kLmEval ? strip(cells[0]) : cells[0];
    for (int choice = 0; choice < 4; ++choice) {
      text += std::string("\n") + static_cast<char>('A' + choice) + ". " + cells[static_cast<size_t>(choice) + 1];
    }
    rows.push_back({text + "\nAnswer:", letter[0] - 'A', where});
  });
  QALORA_REQUIRE(!rows.empty(), DataError, path.string(), ": no questions in it");
  return rows;
}

std::vector<std::string> read_examples(const fs::path& dev, const std::string& subject, Protocol protocol,
                                       int64_t shots) {
  if (shots == 0) return {};
  const fs::path path = dev / (subject + "_dev.csv");
  std::error_code error;
  QALORA_REQUIRE(fs::is_regular_file(path, error), DataError, path.string(), ": missing, and --shots ", shots,
                 " takes its worked examples from it; give the folder that holds dev/, or --shots 0");
  const auto rows = read_questions(path, protocol);
  QALORA_REQUIRE(static_cast<int64_t>(rows.size()) >= shots, DataError, path.string(), ": --shots ", shots, " needs ",
                 shots, " worked examples, got ", rows.size());
  std::vector<std::string> examples;
  for (int64_t i = 0; i < shots; ++i) {
    const auto& row = rows[static_cast<size_t>(i)];
    examples.push_back(row.text + " " + static_cast<char>('A' + row.answer) + "\n\n");
  }
  return examples;
}

void check_wanted(const std::vector<std::string>& wanted, const std::vector<std::string>& known, const fs::path& data) {
  for (const auto& name : wanted) {
    QALORA_REQUIRE(std::find(known.begin(), known.end(), name) != known.end(), UserError, "--subjects: '", name,
                   "' is not in ", data.string(), did_you_mean(name, known), "; it has ", known.size(), " subjects");
  }
}

bool is_wanted(const std::vector<std::string>& wanted, const std::string& name) {
  return wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end();
}

// The subjects of a folder of SUBJECT<suffix> files.
std::vector<std::string> subject_names(const fs::path& folder, const std::string& suffix) {
  std::vector<std::string> names;
  std::error_code error, ignored;
  for (auto entry = fs::directory_iterator(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (entry->is_regular_file(ignored) && name.size() > suffix.size() && name.ends_with(suffix)) {
      names.push_back(name.substr(0, name.size() - suffix.size()));
    }
  }
  QALORA_REQUIRE(!error, DataError, folder.string(), ": cannot be read: ", error.message());
  QALORA_REQUIRE(!names.empty(), DataError, folder.string(), ": no file SUBJECT", suffix, " in it");
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<MmluSubject> read_folder(const MmluSource& source) {
  const fs::path asked = source.data / source.split;
  const std::string suffix = "_" + source.split + ".csv";
  std::error_code error;
  QALORA_REQUIRE(fs::is_directory(asked, error), DataError, source.data.string(), ": expected MMLU's folder with ",
                 source.split, "/SUBJECT", suffix, " and dev/SUBJECT_dev.csv, but it has no folder ", source.split,
                 "/");
  const std::vector<std::string> names = subject_names(asked, suffix);
  check_wanted(source.subjects, names, source.data);

  std::vector<MmluSubject> subjects;
  for (const auto& name : names) {
    if (!is_wanted(source.subjects, name)) continue;
    MmluSubject subject;
    subject.name = name;
    subject.header = header_of(name, source.protocol);
    subject.examples = read_examples(source.data / "dev", name, source.protocol, source.shots.value_or(kDefaultShots));
    for (auto& row : read_questions(asked / (name + suffix), source.protocol)) {
      const int64_t index = static_cast<int64_t>(subject.questions.size());
      if (source.limit > 0 && index == source.limit) break;
      subject.questions.push_back({index, std::move(row.text), row.answer, 0, std::move(row.where)});
    }
    subjects.push_back(std::move(subject));
  }
  return subjects;
}

// Worked examples inside a prompt: every "Answer:" but the last, which is the one that is asked.
int64_t count_own_shots(const std::string& prompt) {
  int64_t count = 0;
  for (size_t at = prompt.find("\nAnswer:"); at != std::string::npos; at = prompt.find("\nAnswer:", at + 1)) ++count;
  return std::max<int64_t>(0, count - 1);
}

MmluQuestion parse_qlora_row(const nlohmann::json& row, const std::string& where, int64_t index,
                             const MmluSubject& subject) {
  MmluQuestion question;
  question.index = index;
  question.where = where;
  question.text = string_field(row, "input", where);
  const std::string letter = string_field(row, "output", where);
  QALORA_REQUIRE(letter.size() == 1 && letter[0] >= 'A' && letter[0] <= 'D', DataError, where,
                 ": \"output\" must be A, B, C or D, got '", letter, "'");
  question.answer = letter[0] - 'A';
  question.own_shots = count_own_shots(question.text);
  if (subject.examples.empty()) return question;
  QALORA_REQUIRE(question.own_shots == 0, DataError, where, ": the prompt already holds ", question.own_shots,
                 " worked examples; leave --shots out to take it as it is");
  QALORA_REQUIRE(question.text.starts_with(subject.header), DataError, where, ": expected \"input\" to begin with '",
                 subject.header.substr(0, subject.header.size() - 2),
                 "', so that --shots can put the worked examples behind it");
  question.text.erase(0, subject.header.size());
  return question;
}

std::vector<MmluSubject> read_qlora_file(const MmluSource& source) {
  QALORA_REQUIRE(source.protocol == Protocol::kQlora, UserError, "--data ", source.data.string(),
                 " is a file: only --protocol qlora "
                 "reads QLoRA's JSON-Lines file; --protocol ",
                 protocol_name(source.protocol), " needs MMLU's folder with dev/ and test/");
  const int64_t shots = source.shots.value_or(0);
  std::vector<MmluSubject> subjects;
  std::vector<std::string> known;
  std::map<std::string, size_t> place;
  int64_t index = -1;
  read_json_lines(source.data, [&](const nlohmann::json& row, const std::string& where) {
    ++index;
    const std::string name = string_field(row, "subject", where);
    if (std::find(known.begin(), known.end(), name) == known.end()) known.push_back(name);
    if (!is_wanted(source.subjects, name)) return true;
    const auto [found, added] = place.try_emplace(name, subjects.size());
    if (added) {
      MmluSubject subject;
      subject.name = name;
      subject.examples = read_examples(source.data.parent_path() / "dev", name, source.protocol, shots);
      if (shots > 0) subject.header = header_of(name, source.protocol);
      subjects.push_back(std::move(subject));
    }
    MmluSubject& subject = subjects[found->second];
    if (source.limit > 0 && static_cast<int64_t>(subject.questions.size()) == source.limit) return true;
    subject.questions.push_back(parse_qlora_row(row, where, index, subject));
    return true;
  });
  QALORA_REQUIRE(!known.empty(), DataError, source.data.string(), ": no questions in it");
  check_wanted(source.subjects, known, source.data);
  return subjects;
}

}  // namespace

std::string protocol_name(Protocol protocol) {
  switch (protocol) {
    case Protocol::kHendrycks: return "hendrycks";
    case Protocol::kQlora: return "qlora";
    default: return "lm-eval";
  }
}

Protocol parse_protocol(std::string_view name) {
  for (Protocol protocol : {Protocol::kHendrycks, Protocol::kQlora, Protocol::kLmEval}) {
    if (name == protocol_name(protocol)) return protocol;
  }
  throw UserError(message("--protocol: expected hendrycks, qlora or lm-eval, got '", name, "'",
                          did_you_mean(name, {"hendrycks", "qlora", "lm-eval"})));
}

std::string category_name(Category category) {
  switch (category) {
    case Category::kHumanities: return "humanities";
    case Category::kStem: return "stem";
    case Category::kSocialSciences: return "social_sciences";
    default: return "other";
  }
}

std::optional<Category> category_of(std::string_view subject) {
  for (const auto& entry : category_table()) {
    if (std::find(entry.subjects.begin(), entry.subjects.end(), subject) != entry.subjects.end()) return entry.category;
  }
  return std::nullopt;
}

std::vector<MmluSubject> read_mmlu(const MmluSource& source) {
  QALORA_REQUIRE(source.shots.value_or(0) >= 0, UserError, "--shots: expected 0 or more, got ", *source.shots);
  QALORA_REQUIRE(source.limit >= 0, UserError, "--limit: expected 0 (all) or more, got ", source.limit);
  std::error_code error;
  QALORA_REQUIRE(fs::exists(source.data, error), UserError, "--data ", source.data.string(), ": ",
                 error ? error.message() : "does not exist");
  if (fs::is_directory(source.data, error)) return read_folder(source);
  QALORA_REQUIRE(source.split == "test", UserError, "--split belongs to MMLU's folder; ", source.data.string(),
                 " is a file");
  return read_qlora_file(source);
}

int64_t count_questions(const fs::path& path) {
  return static_cast<int64_t>(read_questions(path, Protocol::kHendrycks).size());
}

std::string mmlu_prompt(const MmluSubject& subject, const MmluQuestion& question, size_t shots) {
  QALORA_CHECK(shots <= subject.examples.size(), shots, " of ", subject.examples.size(), " examples");
  std::string prompt = subject.header;
  for (size_t i = 0; i < shots; ++i) prompt += subject.examples[i];
  return prompt + question.text;
}

}  // namespace qalora::eval
