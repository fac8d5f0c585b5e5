#include "qalora/eval/verified_merge.h"

#include "qalora/core/error.h"

namespace qalora::eval {
namespace {

void require_exact(const std::string& out, const MergeReport& report) {
  const model::ByteChanges& changes = report.changes;
  const bool kept = changes.codes == 0 && changes.scales == 0 && changes.others == 0;
  QALORA_REQUIRE(kept, VerificationError, out, ": not written: ", changes.codes, " bytes of codes, ", changes.scales,
                 " of scales and ", changes.others,
                 " of other tensors differ from the base; the disk or the memory of this machine is not reliable");
  QALORA_REQUIRE(report.offsets.exact(), VerificationError, out, ": not written: tensor '", report.offsets.worst_name,
                 "': an offset is ", report.offsets.worst,
                 " roundings away from base + scaling * B A, expected at most 1; please report "
                 "this with the adapter's adapter_config.json");
  const MergeProof& proof = report.logits;
  QALORA_REQUIRE(
      !(proof.tolerance == 0), VerificationError, out,
      ": not written: the logits of base + adapter do not depend on the offsets, so nothing can be proved; the adapter is so "
      "large that the model overflows");
  QALORA_REQUIRE(proof.verified(), VerificationError, out,
                 ": not written: the merged model's logits differ from base + adapter by ", proof.max_logit_difference,
                 ", rounding explains at most ", proof.tolerance, " on ", proof.tokens,
                 " tokens; please report this with the adapter's adapter_config.json");
}

}  // namespace

MergeReport merge_verified(const io::Checkpoint& base, const fs::path& adapter_folder, const io::AdapterFile& adapter,
                           const ProofTokens& tokens, const fs::path& out, bool replace, c10::Device device) {
  MergeReport report;
  report.bytes = model::merged_bytes(base, adapter);
  AtomicFolder folder(out, replace, report.bytes + io::sidecar_bytes(base.folder()));
  report.layers = model::merge_checkpoint(base, adapter_folder, adapter, folder.staging());
  {
    const io::Checkpoint merged(folder.staging());
    report.changes = model::compare_bytes(base, merged);
    report.offsets = check_offsets(base, adapter, merged);
  }
  report.logits = prove_merge(base.folder(), adapter, folder.staging(), tokens, device);
  require_exact(out.string(), report);
  folder.commit();
  return report;
}

}  // namespace qalora::eval
