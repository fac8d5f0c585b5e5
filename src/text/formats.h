// From one parsed record to its turns, by format.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "qalora/text/dataset.h"

namespace qalora::text {

// Parses one JSON record. DataError with the reason alone (the caller names file and line).
nlohmann::json parse_record(std::string_view bytes);

// The format that the record's keys speak of; kAuto when none is known.
DataFormat detect_format(const nlohmann::json& record);

// The keys of a record, for messages: "'a', 'b'".
std::string key_names(const nlohmann::json& record);

// One Record, several for self-instruct with several instances. DataError with the reason alone.
std::vector<Record> read_records(const nlohmann::json& record, DataFormat format);

}  // namespace qalora::text
