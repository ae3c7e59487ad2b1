#include "core/pattern.h"

#include <cctype>
#include <sstream>

#include "core/check.h"

namespace occam {

namespace {

std::string trim(std::string_view s) {
  while (!s.empty() && std::isspace(uint8_t(s.front()))) s.remove_prefix(1);
  while (!s.empty() && std::isspace(uint8_t(s.back()))) s.remove_suffix(1);
  return std::string(s);
}

std::vector<std::string> split(std::string_view s, char separator) {
  std::vector<std::string> parts;
  for (size_t start = 0;;) {
    size_t end = s.find(separator, start);
    parts.push_back(trim(s.substr(start, end - start)));
    if (end == std::string_view::npos) return parts;
    start = end + 1;
  }
}

Contract::Axis parse_axis(const std::string& token, std::string_view contract) {
  Contract::Axis axis;
  if (token == "...") {
    axis.ellipsis = true;
    return axis;
  }
  size_t digits = 0;
  while (digits < token.size() && std::isdigit(uint8_t(token[digits]))) ++digits;
  if (digits > 0) axis.factor = std::stoll(token.substr(0, digits));
  std::string rest = token.substr(digits);
  if (digits > 0 && !rest.empty() && rest[0] == '*') rest.erase(0, 1);
  bool name_ok = rest.empty() ? digits > 0 : std::isalpha(uint8_t(rest[0])) != 0;
  for (char c : rest) name_ok = name_ok && (std::isalnum(uint8_t(c)) || c == '_');
  OCCAM_CHECK(name_ok, ErrorKind::internal, "contract `{}`: bad axis `{}`", contract, token);
  axis.name = rest;
  return axis;
}

Contract::Arg parse_arg(const std::string& text, bool named, std::string_view contract) {
  Contract::Arg arg;
  std::string axes = text;
  if (named) {
    size_t colon = text.find(':');
    OCCAM_CHECK(colon != std::string::npos, ErrorKind::internal, "contract `{}`: `{}` has no name", contract,
                text);
    arg.name = trim(text.substr(0, colon));
    axes = text.substr(colon + 1);
    if (arg.name.ends_with('?')) arg.optional = true, arg.name.pop_back();
    if (arg.name.ends_with('*')) arg.variadic = true, arg.name.pop_back();
  }
  std::istringstream in(axes);
  for (std::string token; in >> token;) {
    if (token == "()") continue;
    if (token == "*")
      arg.any = true;
    else
      arg.axes.push_back(parse_axis(token, contract));
  }
  return arg;
}

/// One shape against one argument; binds names on first sight.
class Matcher {
 public:
  Matcher(std::string_view op, const Contract& contract, Contract::Bindings& bindings, std::string_view hint)
      : op_(op), contract_(contract), bindings_(bindings), hint_(hint) {}

  void match(const Contract::Arg& arg, const std::string& label, const Shape& shape) {
    if (arg.any) return;
    int fixed = 0;
    bool ellipsis = false;
    for (const auto& axis : arg.axes) axis.ellipsis ? void(ellipsis = true) : void(++fixed);
    if (ellipsis ? shape.rank() < fixed : shape.rank() != fixed)
      error(fmt::format("{} {} has {} axes where {}{} are needed", label, shape.str(), shape.rank(),
                        ellipsis ? "at least " : "", fixed));
    int at = 0;
    for (const auto& axis : arg.axes) {
      if (axis.ellipsis) {
        Shape middle(std::span(shape.begin() + at, size_t(shape.rank() - fixed)));
        at += middle.rank();
        if (!bindings_.has_ellipsis) {
          bindings_.has_ellipsis = true;
          bindings_.ellipsis = middle;
          seen_["..."] = label + " " + shape.str();
        } else if (!(bindings_.ellipsis == middle)) {
          error(fmt::format("axes `...` are {} in {} but {} in {} {}", bindings_.ellipsis.str(), seen_["..."],
                            middle.str(), label, shape.str()));
        }
      } else {
        match_axis(axis, label, shape, shape[at++]);
      }
    }
  }

 private:
  void match_axis(const Contract::Axis& axis, const std::string& label, const Shape& shape, int64_t size) {
    if (axis.name.empty()) {
      if (size != axis.factor)
        error(fmt::format("{} {} has {} where {} is needed", label, shape.str(), size, axis.factor));
      return;
    }
    if (size % axis.factor != 0)
      error(fmt::format("axis `{}*{}` of {} {} is {}, not a multiple of {}", axis.factor, axis.name, label,
                        shape.str(), size, axis.factor));
    int64_t value = size / axis.factor;
    auto [it, fresh] = bindings_.sizes.emplace(axis.name, value);
    if (fresh) {
      seen_[axis.name] = label + " " + shape.str();
    } else if (it->second != value) {
      error(fmt::format("axis `{}` is {} in {} but {} in {} {}", axis.name, it->second, seen_[axis.name],
                        value, label, shape.str()));
    }
  }

  [[noreturn]] void error(const std::string& what) const {
    std::string text = fmt::format("{}: {}\n  contract  {}", op_, what, contract_.text());
    if (!hint_.empty()) text += fmt::format("\n  hint      {}", hint_);
    fail(ErrorKind::shape, text);
  }

  std::string_view op_;
  const Contract& contract_;
  Contract::Bindings& bindings_;
  std::string_view hint_;
  std::map<std::string, std::string> seen_;
};

}  // namespace

Contract::Contract(std::string_view text) : text_(text) {
  size_t arrow = text.find("->");
  OCCAM_CHECK(arrow != std::string_view::npos, ErrorKind::internal, "contract `{}` has no ->", text);
  for (const std::string& arg : split(text.substr(0, arrow), ','))
    inputs_.push_back(parse_arg(arg, true, text));
  std::string outputs = trim(text.substr(arrow + 2));
  if (!outputs.empty())
    for (const std::string& arg : split(outputs, ',')) outputs_.push_back(parse_arg(arg, false, text));
}

const Contract::Arg& Contract::input(size_t i) const {
  if (i < inputs_.size()) return inputs_[i];
  OCCAM_ASSERT(!inputs_.empty());
  return inputs_.back();
}

Contract::Bindings Contract::bind(std::string_view op, const std::vector<const Shape*>& shapes,
                                  std::string_view hint) const {
  bool variadic = !inputs_.empty() && inputs_.back().variadic;
  size_t count = shapes.size();
  OCCAM_CHECK(variadic ? count >= inputs_.size() : count == inputs_.size(), ErrorKind::shape,
              "{}: {} inputs given\n  contract  {}", op, count, text_);
  Bindings bindings;
  Matcher matcher(op, *this, bindings, hint);
  for (size_t i = 0; i < count; ++i) {
    const Arg& arg = input(i);
    if (shapes[i] == nullptr) {
      OCCAM_CHECK(arg.optional, ErrorKind::shape, "{}: input {} is missing\n  contract  {}", op, arg.name,
                  text_);
      continue;
    }
    matcher.match(arg, arg.variadic ? fmt::format("{}[{}]", arg.name, i + 1 - inputs_.size()) : arg.name,
                  *shapes[i]);
  }
  return bindings;
}

void Contract::check_outputs(std::string_view op, Bindings bindings,
                             const std::vector<const Shape*>& shapes) const {
  OCCAM_CHECK(shapes.size() == outputs_.size(), ErrorKind::internal,
              "{} returned {} outputs; its contract is `{}`", op, shapes.size(), text_);
  Matcher matcher(op, *this, bindings, "");
  for (size_t i = 0; i < shapes.size(); ++i)
    if (shapes[i] != nullptr) matcher.match(outputs_[i], fmt::format("output {}", i), *shapes[i]);
}

}  // namespace occam
