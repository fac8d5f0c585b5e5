#include "qalora/model/work_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "qalora/core/error.h"
#include "qalora/core/format.h"
#include "qalora/core/log.h"
#include "qalora/io/json_file.h"
#include "qalora/io/safetensors.h"

namespace qalora::model {
namespace {

using nlohmann::json;

constexpr const char* kState = "state.json";

std::string file_name(int64_t block) {
  char name[40];
  std::snprintf(name, sizeof name, "block-%05lld.safetensors", static_cast<long long>(block));
  return name;
}

// "block-NNNNN.safetensors"
bool is_block_name(std::string_view name) {
  constexpr std::string_view kBefore = "block-", kBehind = ".safetensors";
  if (!name.starts_with(kBefore) || !name.ends_with(kBehind) || name.size() < kBefore.size() + 5 + kBehind.size())
    return false;
  const std::string_view digits = name.substr(kBefore.size(), name.size() - kBefore.size() - kBehind.size());
  return digits.find_first_not_of("0123456789") == std::string_view::npos;
}

// The identity in a folder's state, or null where there is none: any program may have a "state.json".
json identity_in(const fs::path& folder) {
  std::error_code failed;
  if (!fs::is_regular_file(folder / kState, failed)) return {};
  try {
    const json state = io::read_json_file(folder / kState);
    const json identity = state.is_object() ? state.value("identity", json()) : json();
    return identity.is_object() && identity.contains("format") ? identity : json();
  } catch (const DataError&) {
    return {};
  }
}

// What of a folder is not a work folder's, or "": only what we wrote may be removed. A run that was killed before it
// wrote its state leaves nothing but a temporary of that.
std::string foreign_in(const fs::path& folder, bool has_state) {
  std::error_code failed;
  for (const std::string& name : list_folder(folder)) {
    const size_t mark = name.find(kStagingMark);
    const bool temporary = name.starts_with('.') && mark != std::string::npos;  // of an AtomicFile
    const std::string written = temporary ? name.substr(1, mark - 1) : name;
    const bool ours = written == kState ? has_state || temporary : has_state && is_block_name(written);
    if (!ours || !fs::is_regular_file(fs::symlink_status(folder / name, failed))) return name;
  }
  return "";
}

std::string shown(const std::string& key, const json& value) {
  if (value.is_null()) return "not given";
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  if (key == "group_size" && value == quant::kWholeRow) return "row";
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// In words: of what is known by a fingerprint only, that it differs.
std::string difference(const std::string& key, const json& was, const json& is) {
  if (key == "model") return "the model is another";
  if (key == "calibration")
    return "the calibration data differ, or --samples, --sequence-length, --seed or --template do";
  std::string flag = "--" + key;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return message(flag, " was ", shown(key, was), " and is ", shown(key, is));
}

quant::PackedWeight packed_of(const io::SafetensorsFile& file, const std::string& module) {
  const std::string shape = file.metadata().at(module);  // "in_features group_size bits"
  const std::vector<std::string> parts = split(shape, ' ');
  QALORA_REQUIRE(parts.size() == 3, DataError, file.path().string(), ": '", module, "' has the shape '", shape, "'");
  return quant::make_packed_weight(file.path().string() + ": '" + module + "'", file.read(module + ".weight"),
                                   file.read(module + ".scales"), file.read(module + ".biases"), std::stoll(parts[0]),
                                   std::stoll(parts[1]), std::stoi(parts[2]));
}

std::vector<std::string> modules_of(const io::SafetensorsFile& file) {
  constexpr std::string_view kScales = ".scales";
  std::vector<std::string> modules;
  for (const auto& [name, info] : file.tensors()) {
    if (name.ends_with(kScales)) modules.push_back(name.substr(0, name.size() - kScales.size()));
  }
  return modules;
}

}  // namespace

fs::path WorkFolder::path_for(const fs::path& out) {
  fs::path path = out.has_filename() ? out : out.parent_path();
  path += ".partial";
  return path;
}

int64_t WorkFolder::finished_in(const fs::path& out, const json& identity) {
  const fs::path path = path_for(out);
  if (identity_in(path) != identity) return 0;
  std::error_code failed;
  int64_t blocks = 0;
  while (fs::is_regular_file(path / file_name(blocks), failed)) ++blocks;
  return blocks;
}

uint64_t WorkFolder::bytes_in(const fs::path& out, int64_t blocks) {
  uint64_t bytes = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    std::error_code failed;
    const uint64_t size = fs::file_size(path_for(out) / file_name(block), failed);
    if (!failed) bytes += size;
  }
  return bytes;
}

fs::path WorkFolder::file_of(int64_t block) const { return path_ / file_name(block); }

WorkFolder::WorkFolder(const fs::path& out, const json& identity, bool restart) : path_(path_for(out)) {
  std::error_code failed;
  const fs::file_type kind = kind_of(path_);
  const bool ours = !identity_in(path_).is_null();
  const std::string foreign = kind == fs::file_type::directory ? foreign_in(path_, ours) : "";
  QALORA_REQUIRE(kind == fs::file_type::not_found || (kind == fs::file_type::directory && foreign.empty()), UserError,
                 path_.string(), ": is not a work folder of 'quantize'",
                 foreign.empty() ? "" : message(" ('", foreign, "' lies in it)"),
                 "; move it away or choose another --out");
  fs::create_directories(path_, failed);
  QALORA_REQUIRE(!failed, IoError, path_.string(), ": cannot be made: ", failed.message());
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  QALORA_REQUIRE(lock_ >= 0, IoError, path_.string(), ": cannot be opened: ", std::strerror(errno));
  const bool busy = ::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  try {
    QALORA_REQUIRE(!busy, UserError, path_.string(),
                   ": another run of 'quantize' works there; wait for it, or choose another --out");
    if (ours && !restart) require_same(identity);
    if (!ours || !is_same(identity)) begin(identity);
    while (readable(finished_)) ++finished_;
  } catch (...) {
    ::close(lock_);
    throw;
  }
}

WorkFolder::~WorkFolder() {
  if (lock_ >= 0) ::close(lock_);
}

bool WorkFolder::is_same(const json& identity) const { return identity_in(path_) == identity; }

void WorkFolder::require_same(const json& identity) const {
  if (is_same(identity)) return;
  const json before = identity_in(path_);
  std::vector<std::string> differences;
  for (const auto& [key, value] : identity.items()) {
    const json was = before.is_object() && before.contains(key) ? before[key] : json();
    if (was != value) differences.push_back(difference(key, was, value));
  }
  const bool same_format = before.is_object() && before.value("format", json()) == identity.at("format");
  if (!same_format) differences = {"another version of qalora wrote them"};
  throw UserError(message(path_.string(), ": holds blocks of another call (", join(differences, "; "),
                          "); repeat that call to go on with it, give --force to start anew, or choose another --out"));
}

void WorkFolder::begin(const json& identity) {
  // The state goes last and comes last: whatever is killed in between leaves a folder that this function takes again.
  for (const std::string& name : list_folder(path_)) {
    std::error_code failed;
    if (name != kState) fs::remove(path_ / name, failed);
    QALORA_REQUIRE(!failed, IoError, (path_ / name).string(), ": cannot be removed: ", failed.message());
  }
  io::write_json_file(path_ / kState, {{"identity", identity}});
  finished_ = 0;
}

// A block that a full disk or another program cut short is made again.
bool WorkFolder::readable(int64_t block) const {
  std::error_code failed;
  if (!fs::is_regular_file(file_of(block), failed)) return false;
  try {
    load(block);
    return true;
  } catch (const std::exception& error) {
    log::warn(message(error.what(), "; block ", block, " is made again"));
    return false;
  }
}

void WorkFolder::save(int64_t block, const FinishedBlock& finished) {
  QALORA_CHECK(block == finished_, "block ", block, " comes after ", finished_ - 1);
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata = {{"report", finished.report.dump()}};
  for (const auto& [module, weight] : finished.weights) {
    tensors[module + ".weight"] = weight.codes;
    tensors[module + ".scales"] = weight.scales;
    tensors[module + ".biases"] = weight.offsets;
    metadata[module] = message(weight.in_features, " ", weight.group_size, " ", weight.bits);
  }
  io::write_safetensors(file_of(block), tensors, metadata);
  ++finished_;
}

FinishedBlock WorkFolder::load(int64_t block) const {
  const io::SafetensorsFile file(file_of(block));
  FinishedBlock result;
  for (const std::string& module : modules_of(file)) result.weights[module] = packed_of(file, module);
  result.report = json::parse(file.metadata().at("report"));
  return result;
}

json WorkFolder::report(int64_t block) const {
  return json::parse(io::SafetensorsFile(file_of(block)).metadata().at("report"));
}

quant::PackedWeight WorkFolder::weight(int64_t block, const std::string& module) const {
  return packed_of(io::SafetensorsFile(file_of(block)), module);
}

void WorkFolder::remove() {
  std::error_code failed;
  fs::remove_all(path_, failed);
  if (failed) log::warn(message(path_.string(), ": cannot be removed: ", failed.message()));
}

}  // namespace qalora::model
