#include "client/report_style.h"

namespace sinq::client {
namespace {

// The series' colours keep apart for the colour-blind too, and are lighter on a dark page.
constexpr char kStyle[] = R"css(
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --text: #1d2125; --faint: #646c76; --rule: #dfe2e6;
  --heat: #b3261e;
  --c0: #0b62a4; --c1: #d55e00; --c2: #00795a; --c3: #b0467f; --c4: #7a5c00; --c5: #2b8cbe;
  --c6: #6a51a3; --c7: #565656;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --card: #1c2025; --text: #e4e7ea; --faint: #98a1ab; --rule: #343a41;
    --heat: #ff7a66;
    --c0: #5fb0ee; --c1: #f2924a; --c2: #35c494; --c3: #e08abb; --c4: #d8b84a; --c5: #8fd3f4;
    --c6: #b3a0e6; --c7: #b8b8b8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1240px; padding: 20px 16px 48px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 2px; }
p, dl { margin: 0; }
.faint, figcaption { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px;
  margin: 18px 0; }
.cards div, figure, .sheet { background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
.cards div { padding: 10px 12px; }
.cards dt { color: var(--faint); font-size: 12px; }
.cards dd { margin: 0; font-size: 20px; font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 14px; align-items: start; }
figure { margin: 0; padding: 14px; min-width: 0; }
figcaption { margin-bottom: 8px; }
.scroll { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--faint); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); }
.diagonal { stroke: var(--faint); stroke-dasharray: 4 4; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.dot { stroke: none; fill-opacity: .85; }
.heat { fill: var(--heat); }
.line.c0 { stroke: var(--c0); } .dot.c0, .part.c0 { fill: var(--c0); }
.line.c1 { stroke: var(--c1); } .dot.c1, .part.c1 { fill: var(--c1); }
.line.c2 { stroke: var(--c2); } .dot.c2, .part.c2 { fill: var(--c2); }
.line.c3 { stroke: var(--c3); } .dot.c3, .part.c3 { fill: var(--c3); }
.line.c4 { stroke: var(--c4); } .dot.c4, .part.c4 { fill: var(--c4); }
.line.c5 { stroke: var(--c5); } .dot.c5, .part.c5 { fill: var(--c5); }
.line.c6 { stroke: var(--c6); } .dot.c6, .part.c6 { fill: var(--c6); }
.line.c7 { stroke: var(--c7); } .dot.c7, .part.c7 { fill: var(--c7); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 8px 0 0;
  padding: 0; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 6px; overflow-wrap: anywhere; }
.legend svg { width: 10px; flex: none; }
.sheet { margin-top: 14px; padding: 14px 0 6px; }
.sheet h2, .sheet p { padding: 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; margin-top: 8px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--card); white-space: normal; overflow-wrap: anywhere; min-width: 270px; }
td { border-top: 1px solid var(--rule); }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; cursor: pointer; text-align: inherit; }
th[aria-sort=ascending] button::after { content: " \2191"; }
th[aria-sort=descending] button::after { content: " \2193"; }
@media (max-width: 560px) {
  th:first-child, td:first-child { min-width: 130px; max-width: 46vw; font-size: 12px; }
  th, td { padding: 4px 7px; }
}
@media print { body { max-width: none; } .scroll { overflow: visible; } }
)css";

constexpr char kScript[] = R"js(
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th"), body = heading.closest("table").tBodies[0];
    const sign = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const key = (row) => row.cells[heading.cellIndex].dataset.v;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return sign * order;
    });
    body.append(...rows);
  });
}
)js";

}  // namespace

absl::string_view ReportStyle() { return kStyle; }
absl::string_view ReportScript() { return kScript; }

}  // namespace sinq::client
