//! A web service on a pool: tenants with fair shares, time and memory limits, clients that leave, a
//! streamed answer, metrics, an orderly end. It asks itself a few things, prints the answers, and
//! ends. `cargo run --release --example service`

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_multiprocess as mp;
use tokio_multiprocess::{NotStarted, TaskError};

/// Stands in for what takes long to load.
struct Model {
    weights: Vec<u64>,
}

fn load(size: u64) -> Model {
    Model { weights: (0..size).collect() }
}

/// Stands in for native code: some inputs crash it, have it loop, or take all memory.
fn infer(model: &mut Model, input: u64) -> Result<u64, mp::Failure> {
    match input {
        1 => std::process::abort(),
        2 => loop {
            std::hint::spin_loop();
        },
        3 => loop {
            model.weights.extend_from_within(..);
        },
        4 => Err(mp::Failure::msg("four is out of range")),
        n => Ok(model.weights.iter().sum::<u64>() % n.max(1)),
    }
}

fn count(to: u64) -> impl Iterator<Item = u64> {
    0..to
}

/// What a client is told. Whose fault it was decides that.
struct Refusal(StatusCode, String);

impl From<TaskError> for Refusal {
    fn from(error: TaskError) -> Self {
        let status = match &error {
            TaskError::Returned(_) => StatusCode::BAD_REQUEST,
            TaskError::NotStarted(NotStarted::Quarantined { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
            TaskError::MemoryLimit { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            TaskError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            // Nobody here aborts a call whose client waits: it is the pool that ends.
            TaskError::NotStarted(NotStarted::Closed | NotStarted::NoWorker(_))
            | TaskError::Aborted { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

async fn answer(
    State(pool): State<mp::Pool>,
    Path((tenant, input)): Path<(String, u64)>,
) -> Result<String, Refusal> {
    let call = pool.apply(infer, (input,)).key(tenant).timeout(Duration::from_secs(1));
    // axum drops the handler when its client leaves: so ends the task.
    Ok(call.memory_limit(256 << 20).kill_on_drop().await?.to_string())
}

/// A body that grows as the task gives values, and as fast as the client takes them.
async fn numbers(State(pool): State<mp::Pool>, Path(to): Path<u64>) -> Result<Response, Refusal> {
    let mut values = pool.stream(count, (to,)).kill_on_drop().boxed();
    // An error before the first byte can still be told as a status; after it the body just ends.
    let first = values.next().await.transpose()?;
    let lines = futures::stream::iter(first.map(Ok)).chain(values);
    Ok(Body::from_stream(lines.map_ok(|value| format!("{value}\n"))).into_response())
}

async fn metrics(State(pool): State<mp::Pool>) -> String {
    pool.stats().map_or_else(
        |error| error.to_string(),
        |stats| {
            format!("waiting {}, running {}, restarts {}\n", stats.waiting, stats.running, stats.restarts)
        },
    )
}

async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    connection.read_to_string(&mut response).await?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.lines().next().and_then(|line| line.split_once(' ')).unwrap_or_default().1;
    Ok(format!("{status}: {}", body.lines().last().unwrap_or_default()))
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let builder = mp::Pool::builder().processes(2).spares(1).key_limit(1).state(load, (100_000,));
    let pool = builder.quarantine(3, Duration::from_secs(60)).build().await?;
    let routes = Router::new()
        .route("/infer/{tenant}/{input}", get(answer))
        .route("/numbers/{to}", get(numbers))
        .route("/metrics", get(metrics))
        .with_state(pool.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        axum::serve(listener, routes).with_graceful_shutdown(async { drop(stopped.await) }).await
    });

    let mut as_expected = true;
    for (path, status) in [
        ("/infer/a/97", "200"),
        ("/infer/a/1", "500"),
        ("/infer/b/2", "504"),
        ("/infer/b/3", "413"),
        ("/infer/a/4", "400"),
        ("/infer/b/89", "200"),
        ("/numbers/1000", "200"),
        ("/metrics", "200"),
    ] {
        let answer = ask(address, path).await?;
        println!("{path:14} {answer}");
        as_expected &= answer.starts_with(status);
    }

    // A client that leaves takes its task along.
    let leaving = ask(address, "/infer/c/2");
    drop(tokio::time::timeout(Duration::from_millis(50), leaving).await);

    // Both ends at once: requests under way have until the pool's deadline, and no longer.
    let _ = stop.send(());
    let report = pool.shutdown(Duration::from_secs(5)).await?;
    server.await??;
    println!("done, with {} killed at the deadline", report.killed);
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
