#include "qalora/io/meta_folder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "meta_params.h"
#include "qalora/core/error.h"
#include "qalora/core/format.h"

namespace qalora::io {
namespace {

bool is_there(const fs::path& path) { return kind_of(path) != fs::file_type::not_found; }

fs::path shard_path(const fs::path& folder, size_t number) {
  char name[48];
  std::snprintf(name, sizeof name, "consolidated.%02zu.pth", number);
  return folder / name;
}

// {Meta's name, Hugging Face's}
const std::map<std::string_view, const char*> kWhole = {{"tok_embeddings.weight", "model.embed_tokens.weight"},
                                                        {"norm.weight", "model.norm.weight"},
                                                        {"output.weight", "lm_head.weight"}};
const std::map<std::string_view, const char*> kInLayer = {
    {"attention.wq.weight", "self_attn.q_proj.weight"},    {"attention.wk.weight", "self_attn.k_proj.weight"},
    {"attention.wv.weight", "self_attn.v_proj.weight"},    {"attention.wo.weight", "self_attn.o_proj.weight"},
    {"feed_forward.w1.weight", "mlp.gate_proj.weight"},    {"feed_forward.w2.weight", "mlp.down_proj.weight"},
    {"feed_forward.w3.weight", "mlp.up_proj.weight"},      {"attention_norm.weight", "input_layernorm.weight"},
    {"ffn_norm.weight", "post_attention_layernorm.weight"}};

// Hugging Face's name; nothing where the name is not Meta's.
std::optional<std::string> translate(std::string_view name) {
  if (const auto found = kWhole.find(name); found != kWhole.end()) return found->second;
  constexpr std::string_view kLayers = "layers.";
  if (!name.starts_with(kLayers)) return std::nullopt;
  const std::string_view rest = name.substr(kLayers.size());
  const size_t digits = rest.find_first_not_of("0123456789");
  if (digits == 0 || digits == std::string_view::npos || rest[digits] != '.') return std::nullopt;
  const auto found = kInLayer.find(rest.substr(digits + 1));
  if (found == kInLayer.end()) return std::nullopt;
  return message("model.layers.", rest.substr(0, digits), ".", found->second);
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::vector<std::string> parts;
  for (const int64_t size : shape) parts.push_back(std::to_string(size));
  return message("[", join(parts, ", "), "]");
}

// Where a row of q or k goes. Meta rotates neighbouring rows of a head together, Hugging Face row i and row i +
// head_dim / 2.
int64_t half_split(int64_t row, int64_t head_dim) {
  const int64_t inside = row % head_dim;
  return row - inside + (inside % 2) * (head_dim / 2) + inside / 2;
}

}  // namespace

bool MetaFolder::exists(const fs::path& folder) {
  return is_there(shard_path(folder, 0)) && is_there(folder / config_file());
}

MetaFolder::~MetaFolder() = default;

MetaFolder::MetaFolder(const fs::path& folder)
    : folder_(folder),
      params_(std::make_unique<MetaParams>(read_meta_params(folder / config_file()))) {
  for (size_t number = 0; is_there(shard_path(folder, number)); ++number) {
    shards_.push_back(std::make_unique<TorchFile>(shard_path(folder, number)));
  }
  for (const std::string& name : list_folder(folder)) {
    const bool stray =
        name.starts_with("consolidated.") && name.ends_with(".pth") && name >= shard_path("", shards_.size()).string();
    QALORA_REQUIRE(!stray, DataError, folder.string(), ": holds ", name, ", but not ",
                   shard_path("", shards_.size()).string(), "; fetch the missing part");
  }
  for (const auto& shard : shards_) {
    for (const auto& [name, info] : shard->tensors()) {
      QALORA_REQUIRE(shards_[0]->contains(name), DataError, shard->path().string(), ": tensor '", name,
                     "' is in this part, but not in ", shards_[0]->path().filename().string());
    }
  }
  for (const auto& [name, info] : shards_[0]->tensors()) {
    if (name != "rope.freqs") add(name);  // follows from params.json
  }
}

// Checks the slices of one tensor and says what they make.
void MetaFolder::add(const std::string& name) {
  const fs::path& first = shards_[0]->path();
  const TensorInfo& slice = shards_[0]->info(name);
  const auto translated = translate(name);
  QALORA_REQUIRE(translated.has_value(), DataError, first.string(), ": tensor '", name,
                 "' is none of a LLaMA in Meta's layout");
  for (const auto& shard : shards_) {
    const TensorInfo& other = shard->info(name);
    QALORA_REQUIRE(other.shape == slice.shape && other.dtype == slice.dtype, DataError, shard->path().string(),
                   ": tensor '", name, "' is ", dtype_name(other.dtype), " ", shape_text(other.shape), ", in ",
                   first.filename().string(), " ", dtype_name(slice.dtype), " ", shape_text(slice.shape));
  }
  Origin origin{.name = name, .join = Join::kRows, .heads = 0};
  TensorInfo whole = slice;
  const bool norm = name.ends_with("norm.weight");
  QALORA_REQUIRE(slice.shape.size() == (norm ? 1 : 2), DataError, first.string(), ": tensor '", name,
                 "' has the shape ", shape_text(slice.shape), ", expected ", norm ? 1 : 2, " dimensions");
  if (norm) origin.join = Join::kCopies;
  if (name.ends_with(".wo.weight") || name.ends_with(".w2.weight")) origin.join = Join::kColumns;
  if (name == "tok_embeddings.weight") origin.join = embedding_join(slice);
  if (name.ends_with(".wq.weight")) origin.heads = params_->heads;
  if (name.ends_with(".wk.weight")) origin.heads = params_->kv_heads;
  // Slices lie in files, so their sizes are far from overflowing; there are fewer files than a folder can hold.
  const auto parts = static_cast<int64_t>(shards_.size());
  if (origin.join != Join::kCopies) {
    whole.shape[origin.join == Join::kRows ? 0 : 1] *= parts;
    whole.end *= static_cast<uint64_t>(parts);
  }
  QALORA_REQUIRE(origin.heads == 0 || whole.shape[0] == origin.heads * params_->head_dim, DataError, first.string(),
                 ": tensor '", name, "' has ", whole.shape[0], " rows in ", parts, " parts, expected ", origin.heads,
                 " heads of ", params_->head_dim, "; is a part missing?");
  tensors_[*translated] = std::move(whole);
  origins_[*translated] = std::move(origin);
}

// LLaMA 1 and 2 cut the embedding by columns, LLaMA 3 by rows; nothing but the shape says which.
MetaFolder::Join MetaFolder::embedding_join(const TensorInfo& slice) const {
  if (slice.shape[1] == params_->dim) return Join::kRows;
  const auto parts = static_cast<int64_t>(shards_.size());
  QALORA_REQUIRE(slice.shape[1] * parts == params_->dim, DataError, shards_[0]->path().string(),
                 ": tensor 'tok_embeddings.weight' has ", slice.shape[1], " columns in each of ", parts,
                 " parts, expected ", params_->dim, " in all; is a part missing?");
  return Join::kColumns;
}

const MetaFolder::Origin& MetaFolder::origin(const std::string& name) const {
  info(name);
  return origins_.at(name);
}

at::Tensor MetaFolder::read(const std::string& name) const {
  const TensorInfo& whole = info(name);
  const Origin& from = origin(name);
  if (from.join == Join::kCopies) return shards_[0]->read(from.name);
  at::Tensor result = at::empty(whole.shape, at::dtype(scalar_type(whole.dtype)));
  if (result.numel() == 0) return result;
  auto* to = static_cast<std::byte*>(result.data_ptr());
  const auto row_bytes = static_cast<size_t>(whole.shape[1] * dtype_bytes(whole.dtype));
  int64_t row = 0;    // of the whole, where a slice of rows begins
  size_t column = 0;  // in bytes, where a slice of columns does
  for (const auto& shard : shards_) {
    const TensorBytes slice = shard->bytes(from.name);
    const auto rows = shard->info(from.name).shape[0];
    const size_t bytes = slice.span.size() / static_cast<size_t>(rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t target = from.heads == 0 ? row + i : half_split(row + i, params_->head_dim);
      std::memcpy(to + static_cast<size_t>(target) * row_bytes + column,
                  slice.span.data() + static_cast<size_t>(i) * bytes, bytes);
    }
    if (from.join == Join::kRows) {
      row += rows;
    } else {
      column += bytes;
    }
  }
  return result;
}

TensorBytes MetaFolder::bytes(const std::string& name) const {
  const Origin& from = origin(name);
  const bool as_it_is = from.heads == 0 && (shards_.size() == 1 || from.join == Join::kCopies);
  return as_it_is ? shards_[0]->bytes(from.name) : TensorSource::bytes(name);
}

std::vector<TensorBytes> MetaFolder::stored(const std::string& name) const {
  std::vector<TensorBytes> slices;
  for (const auto& shard : shards_) slices.push_back(shard->bytes(origin(name).name));
  return slices;
}

void MetaFolder::release(const std::string& name) const {
  for (const auto& shard : shards_) shard->release(origin(name).name);
}

std::vector<fs::path> MetaFolder::files() const {
  std::vector<fs::path> result;
  for (const auto& shard : shards_) result.push_back(shard->path());
  return result;
}

int64_t MetaFolder::size_of(const char* name, size_t dimension) const { return info(name).shape[dimension]; }

nlohmann::json MetaFolder::config() const {
  return hugging_face_config(*params_, size_of("model.embed_tokens.weight", 0),
                             size_of("model.layers.0.mlp.gate_proj.weight", 0),
                             /*tied_head=*/!contains("lm_head.weight"));
}

}  // namespace qalora::io
