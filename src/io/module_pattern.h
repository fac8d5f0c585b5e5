// The patterns by which PEFT's rank_pattern and alpha_pattern name modules.
#pragma once

#include <string>

namespace qalora::io {

// As PEFT has it: does the regular expression match the module's path to its end, from its start or from behind a dot?
// Taken are characters, '.', \d, \w, classes as [0-9_], each with '*', '+' or '?', groups of alternatives that are not
// nested, and '^' and '$' at the ends; time is linear in both lengths. DataError that begins with `where` for anything
// else.
bool matches_module(const std::string& where, const std::string& pattern, const std::string& module);

}  // namespace qalora::io
