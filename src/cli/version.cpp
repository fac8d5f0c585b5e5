#include "qalora/cli/version.h"

namespace qalora::cli {

const char* version_number() { return QALORA_VERSION; }
const char* version_commit() { return QALORA_COMMIT; }

}  // namespace qalora::cli
