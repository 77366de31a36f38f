//! A line chart as an SVG, with logarithmic axes.
//!
//! It brings its own background, light or dark as the reader prefers, and tells its lines apart by their
//! markers and labels as well as by colour.

use std::fmt::{self, Display, Formatter};

pub(crate) struct Plot {
    pub(crate) title: String,
    /// What there is to see, for those who cannot.
    pub(crate) description: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    /// At most as many as there are [`COLOURS`].
    pub(crate) series: Vec<Series>,
}

pub(crate) struct Axis {
    pub(crate) label: String,
    /// Where there are lines, and what is said there. The first and the last are the ends of the axis.
    pub(crate) ticks: Vec<(f64, String)>,
}

pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 500.0;
/// What the lines are drawn in, with room around it for what is said.
const LEFT: f64 = 100.0;
const RIGHT: f64 = 784.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 436.0;

/// Of a line, on light and on dark ground; to be told apart by those, too, who do not see red or green.
const COLOURS: [(&str, &str); 4] =
    [("#0067a5", "#56b4e9"), ("#c04f00", "#f0a052"), ("#007a5e", "#3ecfa6"), ("#8a3f78", "#e29fc9")];
/// Of a line, too, around where it is; `0` is its middle.
const MARKERS: [&str; 4] = [
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "m-3.2-3.2h6.4v6.4h-6.4z",
    "m0-4.2l4.2 7.2h-8.4z",
    "m0-4.6l4.6 4.6l-4.6 4.6l-4.6-4.6z",
];

impl Axis {
    /// Ticks at 1, 2 and 5 of each decade, so that all the values are between the first and the last.
    pub(crate) fn decades(
        label: &str,
        values: impl Iterator<Item = f64> + Clone,
        said: impl Fn(f64) -> String,
    ) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        let all = (-12..=18).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)));
        let from = all.clone().take_while(|tick| *tick <= least).count().saturating_sub(1);
        let to = all.clone().take_while(|tick| *tick < most).count();
        let ticks = all.take(to + 1).skip(from).map(|tick| (tick, said(tick))).collect();
        Self { label: label.to_owned(), ticks }
    }

    /// Where a value is on the way from the beginning of the axis to its end.
    fn part(&self, value: f64) -> f64 {
        let [(first, _), .., (last, _)] = &self.ticks[..] else { panic!("an axis has two ends") };
        (value / first).ln() / (last / first).ln()
    }
}

impl Plot {
    fn place(&self, (x, y): (f64, f64)) -> Point {
        Point(LEFT + self.x.part(x) * (RIGHT - LEFT), BOTTOM - self.y.part(y) * (BOTTOM - TOP))
    }
}

struct Point(f64, f64);

impl Display for Point {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{:.1} {:.1}", self.0, self.1)
    }
}

/// Text in which nothing is markup.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&self.0.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"))
    }
}

impl Display for Plot {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let (title, description) = (Escaped(&self.title), Escaped(&self.description));
        writeln!(
            f,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title description">
<title id="title">{title}</title>
<desc id="description">{description}</desc>"#
        )?;
        self.style(f)?;
        writeln!(f, r#"<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>"#)?;
        writeln!(f, r#"<text class="title" x="{LEFT}" y="30">{title}</text>"#)?;
        self.axes(f)?;
        self.legend(f)?;
        self.lines(f)?;
        writeln!(f, "</svg>")
    }
}

impl Plot {
    fn style(&self, f: &mut Formatter) -> fmt::Result {
        let dress = |ground: &str, ink: &str, grid: &str, colours: &mut dyn Iterator<Item = &str>| {
            let lines: String = colours
                .enumerate()
                .map(|(n, colour)| format!(".s{n}{{stroke:{colour};fill:{colour}}}"))
                .collect();
            format!(".ground{{fill:{ground}}}text{{fill:{ink}}}.grid{{stroke:{grid}}}{lines}")
        };
        let light = dress("#ffffff", "#24292f", "#d8dee4", &mut COLOURS.iter().map(|(light, _)| *light));
        let dark = dress("#0d1117", "#e6edf3", "#30363d", &mut COLOURS.iter().map(|(_, dark)| *dark));
        writeln!(
            f,
            "<style>text{{font:13px system-ui,sans-serif}}.title{{font-size:17px;font-weight:600}}\
             .x{{text-anchor:middle}}.y{{text-anchor:end}}path.line{{fill:none;stroke-width:2;stroke-linejoin:round}}\
             {light}@media(prefers-color-scheme:dark){{{dark}}}</style>"
        )
    }

    fn axes(&self, f: &mut Formatter) -> fmt::Result {
        for (value, said) in &self.x.ticks {
            let x = LEFT + self.x.part(*value) * (RIGHT - LEFT);
            writeln!(f, r#"<path class="grid" d="M{x:.1} {TOP}V{BOTTOM}"/>"#)?;
            writeln!(f, r#"<text class="x" x="{x:.1}" y="{}">{}</text>"#, BOTTOM + 20.0, Escaped(said))?;
        }
        for (value, said) in &self.y.ticks {
            let y = BOTTOM - self.y.part(*value) * (BOTTOM - TOP);
            writeln!(f, r#"<path class="grid" d="M{LEFT} {y:.1}H{RIGHT}"/>"#)?;
            writeln!(f, r#"<text class="y" x="{}" y="{:.1}">{}</text>"#, LEFT - 8.0, y + 4.5, Escaped(said))?;
        }
        let middle = [LEFT + RIGHT, TOP + BOTTOM].map(|ends| ends / 2.0);
        writeln!(
            f,
            r#"<text class="x" x="{}" y="{}">{}</text>"#,
            middle[0],
            HEIGHT - 20.0,
            Escaped(&self.x.label)
        )?;
        writeln!(
            f,
            r#"<text class="x" transform="translate(22 {}) rotate(-90)">{}</text>"#,
            middle[1],
            Escaped(&self.y.label)
        )
    }

    fn legend(&self, f: &mut Formatter) -> fmt::Result {
        let each = (RIGHT - LEFT) / COLOURS.len() as f64;
        for (n, series) in self.series.iter().enumerate() {
            let x = LEFT + n as f64 * each;
            let (y, marker) = (58.0, MARKERS[n]);
            writeln!(
                f,
                r#"<path class="line s{n}" d="M{x} {y}h28"/><path class="s{n}" d="M{} {y}{marker}"/>"#,
                x + 14.0
            )?;
            writeln!(f, r#"<text x="{}" y="{}">{}</text>"#, x + 36.0, y + 4.5, Escaped(&series.name))?;
        }
        Ok(())
    }

    fn lines(&self, f: &mut Formatter) -> fmt::Result {
        for (n, series) in self.series.iter().enumerate() {
            let places: Vec<_> = series.points.iter().map(|point| self.place(*point).to_string()).collect();
            writeln!(f, r#"<path class="line s{n}" d="M{}"/>"#, places.join("L"))?;
            let markers: String = places.iter().map(|place| format!("M{place}{}", MARKERS[n])).collect();
            writeln!(f, r#"<path class="s{n}" d="{markers}"/>"#)?;
        }
        Ok(())
    }
}
