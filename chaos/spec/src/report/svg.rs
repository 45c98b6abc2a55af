//! The two drawings of the HTML page: the timeline of faults and availability, and the histogram of
//! latencies. `html` puts them into the page, whose style has their colours.

use std::io;
use std::time::Duration;

use super::markup::{Xml, element, empty, leaf};
use super::{FaultRecord, Latency, Report, latency, micros, short};

/// Width of a drawing, in units of the drawing, which scales to the page.
const WIDTH: f64 = 1000.0;
/// Height of a lane: a line of text and a bar.
const LANE: f64 = 36.0;
/// Height of the axis below the lanes or bars.
const AXIS: f64 = 24.0;
/// Height of the highest bar of the histogram; the next constant is the space above it for its count.
const BAR: f64 = 160.0;
const COUNT: f64 = 18.0;

/// Draws lanes over the time of the run: availability, then each fault with the marks of its recovery.
pub(super) fn timeline(xml: &mut Xml, report: &Report) -> io::Result<()> {
    let scale = Scale::of(report);
    let height = LANE * (report.faults.len() + 1) as f64 + AXIS;
    drawing(xml, height, "Faults and availability over time", |xml| {
        for tick in scale.ticks() {
            let x = number(scale.x(tick));
            let bottom = number(height - AXIS);
            empty(xml, "line", &[("class", "grid"), ("x1", &x), ("x2", &x), ("y1", "0"), ("y2", &bottom)])?;
            let anchor = match scale.x(tick) {
                left if left < 20.0 => "start",
                right if right > WIDTH - 20.0 => "end",
                _ => "middle",
            };
            text(xml, "axis", scale.x(tick), height - 8.0, anchor, &tick_words(tick))?;
        }
        text(xml, "lane", 0.0, 13.0, "start", "writes acknowledged")?;
        for window in &report.availability {
            let (class, word) =
                if window.available { ("up", "available") } else { ("down", "not available") };
            let title = format!("{word} from {} to {}", short(Some(window.from)), short(Some(window.to)));
            bar(xml, class, &scale, 0.0, (window.from, window.to), &title)?;
        }
        let lanes = report.faults.iter().enumerate();
        lanes.into_iter().try_for_each(|(i, fault)| lane(xml, &scale, LANE * (i + 1) as f64, fault))
    })
}

/// Draws the lane of a fault.
fn lane(xml: &mut Xml, scale: &Scale, top: f64, fault: &FaultRecord) -> io::Result<()> {
    let class = if fault.fired > 0 { "fault" } else { "idle" };
    let end = fault.ended.unwrap_or(scale.end);
    // Text on the right ends at its bar, so that it stays within the drawing.
    let x = scale.x(fault.at);
    let anchor = if x > WIDTH * 0.6 { "end" } else { "start" };
    let at = if x > WIDTH * 0.6 { scale.x(end) } else { x };
    text(xml, "lane", at, top + 13.0, anchor, &fault.what)?;
    let until = fault.ended.map_or_else(|| "the end".to_owned(), |ended| short(Some(ended)));
    let title = format!("{} from {} to {until}, fired {}", fault.what, short(Some(fault.at)), fault.fired);
    bar(xml, class, scale, top, (fault.at, end), &title)?;
    let marks = [
        ("detected", fault.detect),
        ("elected", fault.elect),
        ("first write", fault.first_write),
        ("healed", fault.full_heal),
    ];
    for (name, after) in marks.into_iter().filter_map(|(name, after)| Some((name, after?))) {
        let x = number(scale.x(fault.at.saturating_add(after)));
        let (y1, y2) = (number(top + 16.0), number(top + 34.0));
        element(
            xml,
            "line",
            &[("class", "mark"), ("x1", &x), ("x2", &x), ("y1", &y1), ("y2", &y2)],
            |xml| leaf(xml, "title", &[], &format!("{name} after {}", short(Some(after)))),
        )?;
    }
    Ok(())
}

fn bar(
    xml: &mut Xml,
    class: &str,
    scale: &Scale,
    top: f64,
    (from, to): (Duration, Duration),
    title: &str,
) -> io::Result<()> {
    // An event without duration still gets a visible width.
    let (x, width) = (scale.x(from), (scale.x(to) - scale.x(from)).max(2.0));
    let (x, y, width) = (number(x), number(top + 18.0), number(width));
    let attributes = [("class", class), ("x", &*x), ("y", &*y), ("width", &*width), ("height", "14")];
    element(xml, "rect", &attributes, |xml| leaf(xml, "title", &[], title))
}

/// Draws bars for the buckets. Heights are logarithmic, so that few slow operations are visible beside many
/// fast ones.
pub(super) fn histogram(xml: &mut Xml, histogram: &Latency) -> io::Result<()> {
    let buckets = histogram.filled();
    let most = buckets.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let step = WIDTH / buckets.len().max(1) as f64;
    // Only a limited number of labels and counts fit beside each other.
    let labelled = buckets.len().div_ceil(16).max(1);
    drawing(xml, COUNT + BAR + AXIS, "Latencies of acknowledged operations", |xml| {
        for (i, (bound, count)) in buckets.iter().enumerate() {
            let height = BAR * ln(*count) / ln(most).max(f64::MIN_POSITIVE);
            let (left, middle) = (step * i as f64, step * (i as f64 + 0.5));
            let top = COUNT + BAR - height;
            let words = latency::bound_words(*bound);
            let (x, y, width) = (number(left + 1.0), number(top), number((step - 2.0).clamp(1.0, 60.0)));
            let height = number(height);
            let attributes =
                [("class", "bar"), ("x", &*x), ("y", &*y), ("width", &*width), ("height", &*height)];
            element(xml, "rect", &attributes, |xml| {
                leaf(xml, "title", &[], &format!("{count} within {words}"))
            })?;
            let middle = middle.min(left + 31.0);
            if *count > 0 && buckets.len() <= 24 {
                text(xml, "axis", middle, top - 4.0, "middle", &count.to_string())?;
            }
            if i % labelled == 0 {
                text(xml, "axis", middle, COUNT + BAR + 16.0, "middle", &words)?;
            }
        }
        Ok(())
    })
}

fn ln(count: u64) -> f64 {
    (count as f64).ln_1p()
}

fn drawing(
    xml: &mut Xml,
    height: f64,
    title: &str,
    inner: impl FnOnce(&mut Xml) -> io::Result<()>,
) -> io::Result<()> {
    let view = format!("0 0 {WIDTH} {}", number(height));
    element(xml, "svg", &[("viewBox", &view), ("role", "img"), ("aria-label", title)], inner)
}

fn text(xml: &mut Xml, class: &str, x: f64, y: f64, anchor: &str, words: &str) -> io::Result<()> {
    let (x, y) = (number(x), number(y));
    leaf(xml, "text", &[("class", class), ("x", &x), ("y", &y), ("text-anchor", anchor)], words)
}

fn number(number: f64) -> String {
    format!("{number:.1}")
}

/// Maps the time of the run to the width of the drawing.
struct Scale {
    end: Duration,
}

impl Scale {
    /// Creates the scale, long enough for everything in the report.
    fn of(report: &Report) -> Self {
        let windows = report.availability.iter().map(|window| window.to);
        let faults = report.faults.iter().flat_map(|fault| {
            let recovery = [fault.detect, fault.elect, fault.first_write, fault.full_heal];
            let recovered = recovery.into_iter().flatten().map(|after| fault.at.saturating_add(after));
            recovered.chain([fault.at, fault.ended.unwrap_or_default()])
        });
        let end = windows.chain(faults).fold(report.duration(), Duration::max);
        Self { end: end.max(Duration::from_micros(1)) }
    }

    fn x(&self, instant: Duration) -> f64 {
        WIDTH * instant.as_secs_f64() / self.end.as_secs_f64()
    }

    /// Returns at most eleven instants at round intervals.
    fn ticks(&self) -> Vec<Duration> {
        let end = micros::of(self.end);
        let steps = (0..20)
            .flat_map(|power| [1, 2, 5].map(|digit: u64| digit.saturating_mul(10_u64.pow(power.min(18)))));
        let step = steps.into_iter().find(|step| end / step <= 10).unwrap_or(u64::MAX);
        (0..=end / step).map(|i| Duration::from_micros(i * step)).collect()
    }
}

/// Formats a tick without needless decimals.
fn tick_words(tick: Duration) -> String {
    match micros::of(tick) {
        0 => "0".to_owned(),
        micros => latency::bound_words(micros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::markup::{document, tests::elements};
    use crate::report::sample;

    fn drawn(report: &Report) -> String {
        document("", |xml| timeline(xml, report)).unwrap()
    }

    fn scale(end: Duration) -> Scale {
        Scale { end }
    }

    #[test]
    fn ticks_are_round_and_few() {
        let words = |end| scale(end).ticks().into_iter().map(tick_words).collect::<Vec<_>>().join(" ");
        assert_eq!(words(Duration::from_secs(60)), "0 10s 20s 30s 40s 50s 60s");
        assert_eq!(words(Duration::from_millis(3_500)), "0 500ms 1s 1.5s 2s 2.5s 3s 3.5s");
        for end in [Duration::from_micros(1), Duration::from_secs(86_400), Duration::MAX] {
            assert!((1..=11).contains(&scale(end).ticks().len()), "{end:?}");
        }
    }

    #[test]
    fn a_bar_is_where_its_time_is() {
        let svg = drawn(&sample::passed());
        // 10 s to 20 s and 10 s to 13 s of 60 s, on a width of 1000.
        assert!(
            svg.contains(r#"<rect class="fault" x="166.7" y="54.0" width="166.7" height="14">"#),
            "{svg}"
        );
        assert!(svg.contains(r#"<rect class="down" x="166.7" y="18.0" width="50.0" height="14">"#), "{svg}");
        assert!(svg.contains("elected after 620ms"), "{svg}");
        let names = elements(&svg);
        assert_eq!(names.iter().filter(|name| *name == "rect").count(), 4, "three windows and one fault");
    }

    #[test]
    fn a_fault_that_never_ended_goes_to_the_end() {
        let svg = drawn(&sample::unknown());
        assert!(svg.contains(r#"<rect class="idle" x="166.7" y="90.0" width="833.3" height="14">"#), "{svg}");
        assert!(svg.contains("pause m1 from 10.00s to the end, fired 0"), "{svg}");
    }

    #[test]
    fn an_empty_report_is_drawn() {
        let mut report = sample::passed();
        (report.ended, report.faults, report.availability) = (Duration::ZERO, Vec::new(), Vec::new());
        let svg = drawn(&report);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let svg = document("", |xml| histogram(xml, &Latency::default())).unwrap();
        assert_eq!(elements(&svg), ["svg"]);
    }

    #[test]
    fn every_count_of_the_histogram_is_there() {
        let svg = document("", |xml| histogram(xml, &sample::passed().latency)).unwrap();
        assert!(svg.contains("4211 within 1ms") && svg.contains("1 within 50ms"), "{svg}");
        assert!(svg.contains(">4211</text>"), "{svg}");
        // 1 ms to 50 ms: 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50.
        assert_eq!(elements(&svg).iter().filter(|name| *name == "rect").count(), 11);
        assert!(svg.contains(r#"y="18.0" width="60.0" height="160.0""#), "the highest bar is full: {svg}");
    }
}
