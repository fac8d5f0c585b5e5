// What was built. A file of its own, because the commit changes often and nothing else should be compiled again for it.
#pragma once

namespace qalora::cli {

const char* version_number();  // "0.1.0"
const char*
version_commit();  // as `git describe --always --dirty` said when CMake last ran; "unknown" outside a git checkout

}  // namespace qalora::cli
