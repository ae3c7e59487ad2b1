#pragma once
// Measured lines as a table.
#include <vector>

#include "core/io/json.h"
#include "core/report/html.h"

namespace occam {

/// A row a line, with the columns that some line has, for the terminal and the report.
Table table_of(const std::vector<Json>& lines);

}  // namespace occam
