//! A plot: an SVG with two axes, whose text is readable from 400 pixels on.

use core::fmt::Write as _;

use super::axis::Axis;
use super::escape;

/// Size of a plot in SVG units. A plot is about as wide in pixels, so that text keeps its size.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 300.0;
/// Space around the data, for labels and titles.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 42.0;
/// Distance of the labels of vertical lines from each other.
const LABEL_STEP: f64 = 17.0;

/// A plot under construction.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    height: f64,
    body: String,
    /// Drawn above the rest.
    front: String,
    marks: u32,
}

impl Plot {
    pub(super) fn new(x: Axis, y: Axis) -> Self {
        Self::with_height(x, y, HEIGHT)
    }

    /// A plot with another height, in SVG units.
    pub(super) fn with_height(x: Axis, y: Axis, height: f64) -> Self {
        Self {
            x,
            y,
            height,
            body: String::new(),
            front: String::new(),
            marks: 0,
        }
    }

    /// The position of a time or another value of the axis `x`.
    fn at_x(&self, value: f64) -> f64 {
        LEFT + share(value, &self.x) * (WIDTH - LEFT - RIGHT)
    }

    fn at_y(&self, value: f64) -> f64 {
        let bottom = self.height - BOTTOM;
        bottom - share(value, &self.y) * (bottom - TOP)
    }

    /// A step function that starts at the origin, rises at each point and ends at the right.
    pub(super) fn steps(&mut self, points: impl IntoIterator<Item = (f64, f64)>, class: &str) {
        let mut path = format!("M{:.1} {:.1}", self.at_x(self.x.start), self.at_y(0.0));
        let mut last = String::new();
        for (x, y) in points {
            let step = format!("H{:.1}V{:.1}", self.at_x(x), self.at_y(y));
            if step != last {
                path.push_str(&step);
                last = step;
            }
        }
        let _ = write!(path, "H{:.1}", self.at_x(self.x.end));
        let _ = write!(self.body, "<path class='line {class}' d='{path}'/>");
    }

    /// A line from point to point.
    pub(super) fn line(&mut self, points: impl IntoIterator<Item = (f64, f64)>, class: &str) {
        let mut path = String::new();
        for (x, y) in points {
            let start = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{start}{:.1} {:.1}", self.at_x(x), self.at_y(y));
        }
        let _ = write!(self.body, "<path class='line {class}' d='{path}'/>");
    }

    /// A line of values, each for a bucket of the axis `x`.
    pub(super) fn buckets(&mut self, bucket: f64, values: &[f64], class: &str) {
        let mut path = String::new();
        for (at, value) in values.iter().enumerate() {
            let (from, to) = (at as f64 * bucket, (at + 1) as f64 * bucket);
            let y = self.at_y(*value);
            let start = if at == 0 { 'M' } else { 'L' };
            let (from, to) = (self.at_x(from), self.at_x(to));
            let _ = write!(path, "{start}{from:.1} {y:.1}H{to:.1}");
        }
        let _ = write!(self.body, "<path class='line {class}' d='{path}'/>");
    }

    /// The area between two rows of values, each for a bucket of the axis `x`.
    pub(super) fn area(&mut self, bucket: f64, low: &[f64], high: &[f64], class: &str) {
        let edge = |at: usize| self.at_x(at as f64 * bucket);
        let mut path = String::new();
        for (at, value) in high.iter().enumerate() {
            let y = self.at_y(*value);
            let start = if at == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{start}{:.1} {y:.1}H{:.1}", edge(at), edge(at + 1));
        }
        for (at, value) in low.iter().enumerate().rev() {
            let y = self.at_y(*value);
            let _ = write!(path, "L{:.1} {y:.1}H{:.1}", edge(at + 1), edge(at));
        }
        let _ = write!(self.body, "<path class='area {class}' d='{path}Z'/>");
    }

    /// A cell of a heat map; `share` from 0 to 1 is its colour.
    pub(super) fn cell(&mut self, x: (f64, f64), y: (f64, f64), share: f64) {
        if share <= 0.0 {
            return;
        }
        let (left, right) = (self.at_x(x.0), self.at_x(x.1));
        let (top, bottom) = (self.at_y(y.1), self.at_y(y.0));
        let (width, height) = (right - left, bottom - top);
        let _ = write!(
            self.body,
            "<rect class=heat x='{left:.1}' y='{top:.1}' width='{width:.1}' height='{height:.1}' fill-opacity='{share:.2}'/>"
        );
    }

    /// A vertical line with a label, drawn above the rest.
    pub(super) fn mark(&mut self, x: f64, label: &str, class: &str) {
        let at = self.at_x(x);
        let bottom = self.height - BOTTOM;
        let y = TOP + 12.0 + LABEL_STEP * f64::from(self.marks);
        self.marks += 1;
        let is_right = at > (LEFT + WIDTH) / 2.0;
        let (side, anchor) = if is_right {
            (-5.0, "end")
        } else {
            (5.0, "start")
        };
        let label = escape(label);
        let _ = write!(
            self.front,
            "<line class='bound {class}' x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{bottom}'/>\
             <text class=over x='{:.1}' y='{y:.1}' text-anchor={anchor}>{label}</text>",
            at + side
        );
    }

    /// A dot.
    pub(super) fn dot(&mut self, x: f64, y: f64, class: &str) {
        let (x, y) = (self.at_x(x), self.at_y(y));
        let _ = write!(
            self.front,
            "<circle class='{class}' cx='{x:.1}' cy='{y:.1}' r='4'/>"
        );
    }

    /// The whole SVG, with `label` for readers that do not see it.
    pub(super) fn svg(&self, label: &str) -> String {
        let bottom = self.height - BOTTOM;
        let right = WIDTH - RIGHT;
        let mut axes = String::new();
        for (value, text) in &self.y.ticks {
            let at = self.at_y(*value);
            let _ = write!(
                axes,
                "<line class=grid x1='{LEFT}' x2='{right}' y1='{at:.1}' y2='{at:.1}'/>\
                 <text x='{:.1}' y='{:.1}' text-anchor=end>{}</text>",
                LEFT - 6.0,
                at + 4.5,
                escape(text)
            );
        }
        for (value, text) in &self.x.ticks {
            let at = self.at_x(*value);
            let _ = write!(
                axes,
                "<line class=grid x1='{at:.1}' x2='{at:.1}' y1='{bottom}' y2='{:.1}'/>\
                 <text x='{at:.1}' y='{:.1}' text-anchor=middle>{}</text>",
                bottom + 4.0,
                bottom + 17.0,
                escape(text)
            );
        }
        let _ = write!(
            axes,
            "<text class=title x='2' y='14'>{}</text>\
             <text class=title x='{right}' y='{:.1}' text-anchor=end>{}</text>",
            escape(&self.y.title),
            self.height - 6.0,
            escape(&self.x.title)
        );
        format!(
            "<svg viewBox='0 0 {WIDTH} {}' role=img aria-label='{}'>{axes}{}{}</svg>",
            self.height,
            escape(label),
            self.body,
            self.front
        )
    }
}

/// Where a value is on an axis, from 0 to 1.
fn share(value: f64, axis: &Axis) -> f64 {
    ((value - axis.start) / (axis.end - axis.start)).clamp(0.0, 1.0)
}
