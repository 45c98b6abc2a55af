//! Progress of long work on the terminal: one line per step, with its duration; a
//! spinner while a step runs when the output is a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints the steps of one command.
pub struct Steps {
    start: Instant,
}

impl Steps {
    /// Starts the clock of the whole command.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Runs one step and prints its result.
    pub async fn run<T, E>(&mut self, label: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let bar = ProgressBar::new_spinner().with_message(label.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        let begin = Instant::now();
        let result = work.await;
        bar.finish_and_clear();
        let mark = if result.is_ok() { "ok" } else { "FAILED" };
        let (step, total) = (begin.elapsed().as_secs_f64(), self.start.elapsed().as_secs_f64());
        eprintln!("{mark:>6}  {label} ({step:.1} s, {total:.1} s in all)");
        result
    }
}
