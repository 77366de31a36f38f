//! The throughput of a queue by size of item, as a plot and as a table.

use std::path::Path;

use tokio_multiprocess as mp;

use crate::crew::Work;
use crate::goods::SharedBytes;
use crate::plot::{Axis, Plot, Series};
use crate::queue_crew;
use crate::support::Figure;

/// Powers of two, in bytes.
const SIZES: std::ops::RangeInclusive<u32> = 3..=24;
/// On each side.
const PROCESSES: std::ops::RangeInclusive<usize> = 1..=4;
const ROUNDS: usize = 5;
/// What goes through in a round, about, in bytes; and how many items that may be.
const VOLUME: usize = 256 << 20;
const MOST: usize = 200_000;
/// The number of items can be shared by as many processes as there may be.
const SHARED: usize = 12;

/// A size of item, and how many of them go through in a second, by processes on each side.
struct Row {
    size: usize,
    rates: Vec<f64>,
}

pub(crate) async fn draw(path: &Path) {
    let mut rows = Vec::new();
    for exponent in SIZES {
        let row = measure(1 << exponent).await;
        println!(
            "{:>8}: {}",
            size(row.size as f64),
            row.rates.iter().map(|rate| throughput(rate * row.size as f64)).collect::<Vec<_>>().join(", ")
        );
        rows.push(row);
    }
    std::fs::write(path, plot(&rows).to_string()).expect("written");
    std::fs::write(path.with_extension("csv"), table(&rows)).expect("written");
}

async fn measure(size: usize) -> Row {
    let count = (VOLUME / size).min(MOST).next_multiple_of(SHARED) as u32;
    let mut crews = Vec::new();
    for processes in PROCESSES {
        let queue = mp::Queue::new(0).expect("a queue");
        let work = Work { count, size };
        let mut crew = queue_crew::start::<_, SharedBytes>(queue, processes, processes, work).await;
        // The first touches memory that the others find.
        crew.round().await;
        crews.push((Figure::new(""), crew));
    }
    for _ in 0..ROUNDS {
        for (figure, crew) in &mut crews {
            figure.push(crew.round().await);
        }
    }
    let mut rates = Vec::new();
    for (figure, crew) in crews {
        crew.stop().await;
        rates.push(1.0 / figure.typical());
    }
    Row { size, rates }
}

fn plot(rows: &[Row]) -> Plot {
    let series: Vec<_> = PROCESSES
        .enumerate()
        .map(|(which, processes)| Series {
            name: match processes {
                1 => "1 process to 1".to_owned(),
                _ => format!("{processes} processes to {processes}"),
            },
            points: rows.iter().map(|row| (row.size as f64, row.rates[which] * row.size as f64)).collect(),
        })
        .collect();
    let said: Vec<_> = series
        .iter()
        .map(|Series { name, points }| {
            let (least, most) =
                (points[0], *points.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("points"));
            format!(
                "{name}: {} million items of {} in a second, and {} with items of {}, the most",
                ((least.1 / least.0 / 1e5).round() / 10.0),
                size(least.0),
                throughput(most.1),
                size(most.0)
            )
        })
        .collect();
    let values = series.iter().flat_map(|series| &series.points).map(|(_, value)| *value);
    Plot {
        title: "Throughput of a Queue, by size of item".to_owned(),
        description: format!(
            "Items are Bytes, and the queue takes any number. Both axes are logarithmic. {}.",
            said.join("; ")
        ),
        y: Axis::decades("bytes in a second, by all together", values, throughput),
        x: Axis {
            label: "bytes in an item".to_owned(),
            ticks: SIZES
                .step_by(3)
                .map(|exponent| f64::from(1 << exponent))
                .map(|tick| (tick, size(tick)))
                .collect(),
        },
        series,
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = "item_bytes,processes_per_side,items_per_second,bytes_per_second\n".to_owned();
    for Row { size, rates } in rows {
        for (processes, rate) in PROCESSES.zip(rates) {
            table += &format!("{size},{processes},{rate:.0},{:.0}\n", rate * *size as f64);
        }
    }
    table
}

fn size(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB"])
}

fn throughput(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s"])
}

/// In the largest unit of which there is one at least, with two digits at least.
fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().expect("a unit");
    for next in units {
        if value < step {
            break;
        }
        (value, unit) = (value / step, next);
    }
    let value = if value < 10.0 { (value * 10.0).round() / 10.0 } else { value.round() };
    format!("{value} {unit}")
}
