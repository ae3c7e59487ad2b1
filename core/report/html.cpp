#include "core/report/html.h"

#include <fmt/format.h>

#include "core/check.h"
#include "core/io/atomic_file.h"
#include "core/report/canvas.h"
#include "core/report/png.h"
#include "core/report/svg.h"

namespace occam {
namespace {

constexpr const char* kCss = R"(
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--paper:#fff;--line:#d5dae0;--tint:#f5f7f9;--accent:#0072b2;--warn:#9a5b00;--warntint:#fff6e5}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9da7b3;--paper:#0f141a;--line:#303842;--tint:#171e26;--accent:#5ab4ec;--warn:#f0b45a;--warntint:#2a2112}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI","Liberation Sans",sans-serif}
main{max-width:76rem;margin:0 auto;padding:2.2rem 1.4rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .2rem}
h2{font-size:1.25rem;margin:2.6rem 0 .7rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .5rem}
p{margin:.6rem 0;max-width:46rem}
.subtitle{color:var(--soft);margin:0 0 1.2rem}
nav ol{margin:.4rem 0 0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem}
a{color:var(--accent);text-underline-offset:2px}
.note{border-left:4px solid var(--warn);background:var(--warntint);padding:.6rem .9rem;margin:1rem 0;border-radius:0 6px 6px 0;max-width:46rem}
.highlights{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.highlights div{background:var(--tint);border:1px solid var(--line);border-radius:8px;padding:.7rem 1.1rem;min-width:8rem}
.highlights dt{color:var(--soft);font-size:.82rem;order:2}
.highlights dd{margin:0;font-size:1.45rem;font-weight:600;line-height:1.2}
.highlights div{display:flex;flex-direction:column}
figure{margin:1.3rem 0}
figcaption,caption{color:var(--soft);font-size:.88rem;text-align:left;max-width:46rem}
figcaption{margin-top:.35rem}
caption{padding-bottom:.4rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.88rem}
th,td{padding:.34rem .55rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
thead th{border-bottom:2px solid var(--line);font-weight:600;white-space:nowrap}
tbody tr:hover{background:var(--tint)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.hi td{font-weight:600;background:var(--tint)}
pre{background:var(--tint);border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;overflow-x:auto;font:13px/1.5 ui-monospace,"Liberation Mono",monospace}
details{margin:.3rem 0}
summary{color:var(--soft);font-size:.88rem;cursor:pointer}
.images{display:flex;flex-wrap:wrap;gap:.7rem}
.images div{font-size:.8rem;color:var(--soft)}
.images img{display:block;border-radius:4px;image-rendering:pixelated}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--line);color:var(--soft);font-size:.82rem}
@media print{h2{break-after:avoid}figure,tr{break-inside:avoid}details>*{display:block}}
)";

std::string table_html(const Table& table) {
  std::string out = "<div class=\"scroll\"><table>\n";
  if (!table.caption.empty()) out += "<caption>" + escape_html(table.caption) + "</caption>\n";
  out += "<thead><tr>";
  auto style = [&](size_t column) { return table.is_numeric(column) ? " class=\"n\"" : ""; };
  for (size_t c = 0; c < table.columns.size(); ++c)
    out += fmt::format("<th scope=\"col\"{}>{}</th>", style(c), escape_html(table.columns[c]));
  out += "</tr></thead>\n<tbody>\n";
  for (size_t r = 0; r < table.rows.size(); ++r) {
    out += int(r) == table.highlighted ? "<tr class=\"hi\">" : "<tr>";
    for (size_t c = 0; c < table.rows[r].size(); ++c)
      out += fmt::format("<td{}>{}</td>", style(c), escape_html(table.rows[r][c].text));
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

}  // namespace

HtmlReport::HtmlReport(std::string title, std::string subtitle)
    : title_(std::move(title)), subtitle_(std::move(subtitle)) {}

void HtmlReport::section(const std::string& title, int level) {
  OCCAM_ASSERT(level == 2 || level == 3);
  std::string id;
  if (level == 2) {
    id = fmt::format("s{}", contents_.size() + 1);
    contents_.emplace_back(id, title);
    id = " id=\"" + id + "\"";
  }
  body_ += fmt::format("<h{0}{1}>{2}</h{0}>\n", level, id, escape_html(title));
}

void HtmlReport::paragraph(const std::string& text) { body_ += "<p>" + escape_html(text) + "</p>\n"; }

void HtmlReport::note(const std::string& text) {
  body_ += "<div class=\"note\" role=\"note\">" + escape_html(text) + "</div>\n";
}

void HtmlReport::highlights(const std::vector<std::pair<std::string, std::string>>& values) {
  body_ += "<dl class=\"highlights\">\n";
  for (const auto& [value, label] : values)
    body_ += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", escape_html(label), escape_html(value));
  body_ += "</dl>\n";
}

void HtmlReport::list(const std::vector<std::string>& items) {
  body_ += "<ul>\n";
  for (const std::string& item : items) body_ += "<li>" + escape_html(item) + "</li>\n";
  body_ += "</ul>\n";
}

void HtmlReport::code(const std::string& text) {
  body_ += "<pre><code>" + escape_html(text) + "</code></pre>\n";
}

void HtmlReport::table(const Table& table) { body_ += table_html(table); }

void HtmlReport::figure(const std::string& svg, const std::string& caption, const Table& data) {
  body_ += "<figure>\n" + svg + "<figcaption>" + escape_html(caption) + "</figcaption>\n";
  if (!data.columns.empty())
    body_ += "<details><summary>The numbers</summary>\n" + table_html(data) + "</details>\n";
  body_ += "</figure>\n";
}

void HtmlReport::images(const std::vector<ReportImage>& images, const std::string& caption) {
  body_ += "<figure>\n<div class=\"images\">\n";
  for (const ReportImage& image : images) {
    body_ += fmt::format(
        "<div><img src=\"data:image/png;base64,{}\" width=\"{}\" height=\"{}\" alt=\"{}\">{}</div>\n",
        encode_base64(image.png), image.width, image.height, escape_html(image.alt),
        escape_html(image.caption));
  }
  body_ += "</div>\n<figcaption>" + escape_html(caption) + "</figcaption>\n</figure>\n";
}

std::string HtmlReport::str() const {
  std::string out =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "img-src "
      "data:\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  out += "<title>" + escape_html(title_) + "</title>\n<style>" + kCss + chart_css() +
         "</style>\n</head>\n<body>\n<main>\n";
  out += "<h1>" + escape_html(title_) + "</h1>\n";
  if (!subtitle_.empty()) out += "<p class=\"subtitle\">" + escape_html(subtitle_) + "</p>\n";
  if (contents_.size() > 2) {
    out += "<nav aria-label=\"Contents\"><ol>\n";
    for (const auto& [id, title] : contents_)
      out += fmt::format("<li><a href=\"#{}\">{}</a></li>\n", id, escape_html(title));
    out += "</ol></nav>\n";
  }
  return out + body_ + "<footer>Written by Occam.</footer>\n</main>\n</body>\n</html>\n";
}

void HtmlReport::write(const std::filesystem::path& path) const { write_file_atomic(path, str()); }

}  // namespace occam
