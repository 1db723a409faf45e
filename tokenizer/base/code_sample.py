"""Program code, markup, tables, emoji and control characters: what every model reads, whatever its languages.

An extension must leave them as they are, and every gate looks at them.
"""

# ruff: noqa: E501
from __future__ import annotations

_LONGEST_INDENT = 200
_LONGEST_RUN = 40

_SAMPLE = r"""
import numpy as np
from collections import defaultdict, OrderedDict

class DataLoader(Dataset):
    def __init__(self, path: str, batch_size: int = 32, shuffle=True, **kwargs) -> None:
        super().__init__()
        self.path, self._cache = path, {}
        for i, (key, value) in enumerate(sorted(kwargs.items(), key=lambda kv: -kv[1])):
            if value is None or not isinstance(value, (int, float)):
                raise ValueError(f"unexpected {key!r}: {value:>10.3f}")
            self._cache[key] = [x ** 2 for x in range(10) if x % 3 != 0]

    @property
    def total(self): return sum(len(v) for v in self._cache.values())

try:
    with open("/tmp/data.json", "w", encoding="utf-8") as handle:
        json.dump({"id": 12345, "ratio": 3.14159e-10, "tags": ["a", "b"], "ok": true}, handle, indent=4)
except (OSError, KeyError) as error:
    logging.warning("cannot write: %s", error)
finally:
    print(f"{time.time() - start:.2f}s", file=sys.stderr)

#include <stdio.h>
#include <vector>
template <typename T> T max_of(const std::vector<T>& items, size_t n) {
    T best = items[0];
    for (size_t i = 1; i < n && i < items.size(); ++i) { if (items[i] > best) best = items[i]; }
    return best;  /* 0xDEADBEEF, 0b1010, 1'000'000 */
}
int main(int argc, char **argv) { printf("%d\t%s\n", argc, argv[0]); return EXIT_SUCCESS; }

function fetchUser(id) { return fetch(`/api/v2/users/${id}?limit=100&offset=0`).then(r => r.json()); }
const handler = async (req, res) => { const { name, email } = req.body; res.status(404).send({ error: null }); };
export default class App extends React.Component { render() { return <div className="main">{this.props.children}</div>; } }

SELECT u.id, COUNT(*) AS n FROM users u LEFT JOIN orders o ON o.user_id = u.id WHERE u.created_at >= '2023-01-31'
GROUP BY u.id HAVING COUNT(*) > 5 ORDER BY n DESC LIMIT 20;

pub fn parse(input: &str) -> Result<Vec<u8>, ParseError> { input.bytes().map(|b| match b { b'0'..=b'9' => Ok(b - b'0'), _ => Err(ParseError::Digit) }).collect() }
func (s *Server) Serve(ctx context.Context) error { defer s.mu.Unlock(); go s.loop(); return nil }
public static void main(String[] args) throws IOException { System.out.println("Hello, world! " + args.length); }
for f in *.txt; do grep -rn "TODO" "$f" | awk '{print $1}' >> out.log; done; chmod 755 run.sh && ./run.sh --dry-run -v

<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Index</title></head><body onload="init()"></body></html>
\documentclass{article}\usepackage{amsmath}\begin{document}$\alpha_i^2 + \sum_{k=1}^{n} \frac{x_k}{\sqrt{2\pi}}$\end{document}
| name | value |
|------|------:|
| a    | 1,024 |
- [x] see https://www.example.com/path/to/page.html#section-2 or mail john.doe@example.com
0 1 2 3 10 100 1000 1,234,567.89 -40 +7 1/2 50% $19.99 2024-02-29T23:59:59Z 192.168.0.1 1e-5 007 3.14 42nd v1.2.3-rc1
"""
_TABLES = (
    "name            \tcount\t\t share\t",
    "\t\tif (x)\t\treturn  1;\t// two  spaces,   three",
    "  1.  first        12.50      3,000  \t  -",
    "+--------+-------------+\t|  a  |            b |",
    "key:            value              # aligned comment",
    "x" + " " * 70 + "x" + " " * 33 + "\\",
    "    \t    mixed \t \t indentation   ",
)
_EMOJI = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family, \U0001f3f3\ufe0f\u200d\U0001f308 flag",
    "\U0001f469\U0001f3fd\u200d\U0001f680 with a skin tone, \U0001f1ef\U0001f1f5\U0001f1fb\U0001f1f3 regions, 1\ufe0f\u20e3 keycap",
    "\u2764\ufe0f\u2764\ufe0e \U0001f44d\U0001f44d\U0001f3ff \u2705\u274c \u2192 \u00d7 \u2264 \u00a9 \u2022",
)
_CONTROL = (
    "\x1b[1;31merror\x1b[0m: \x07 and \x08 and \x7f",
    "form\x0cfeed, vertical\x0btab, next\x85line, carriage return\r",
    "zero\u200bwidth\u200c and \u200djoiners, \ufeffmark, \u2028line, \u00a0no break\u202fnarrow\u3000wide",
    "<s> and </s>, <unk>, <0x0A>, \u2581 and \u2581\u2581\u2581",
)


def code_lines() -> list[str]:
    """Lines of code in several languages, indentation of every depth, tables, emoji sequences, control characters."""
    runs = [" " * depth + "x = 1" for depth in range(1, _LONGEST_INDENT + 1)]
    runs += ["\t" * depth + "x = 1" for depth in range(1, _LONGEST_RUN + 1)]
    runs += [mark * length for length in (2, 3, 5, 8, 16, 17, _LONGEST_RUN) for mark in "-=#*._/~"]
    sample = [line for line in _SAMPLE.split("\n") if line.strip()]
    return [*sample, *runs, *_TABLES, *_EMOJI, *_CONTROL]
