//! The two ways to run [`inspect`] over many archives: the only file that knows about processes, or
//! threads.

use std::path::PathBuf;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::task;
use tokio_multiprocess as mp;

use crate::args::Args;
use crate::inspect::{Report, inspect};

/// In the order of the archives; an error is what there is to say about it.
pub(crate) type Results = BoxStream<'static, Result<Report, String>>;

/// Whatever an archive does to its worker, it does to that worker alone.
pub(crate) async fn in_processes(args: &Args, archives: Vec<PathBuf>) -> mp::Result<Results> {
    let context = mp::Context::new(args.start_method);
    let pool = mp::Pool::builder().context(context).processes(args.processes.get()).build().await?;
    // One archive a message: they are few and differ in size, and the limit is for each.
    let results = pool.imap(inspect, archives).chunk_size(1).timeout(args.timeout);
    Ok(results.map(|result| result.map_err(|error| error.to_string())).boxed())
}

/// The same without processes. A thread cannot be stopped, so there is no time limit, and a crash
/// is everybody's.
pub(crate) fn in_threads(args: &Args, archives: Vec<PathBuf>) -> Results {
    stream::iter(archives)
        .map(|archive| task::spawn_blocking(|| inspect(archive)))
        .buffered(args.processes.get())
        .map(|joined| match joined {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        })
        .boxed()
}
