//! Fetches what URLs name, all at once, by reqwest: `fetch http://127.0.0.1:8080/ada ..`.
//!
//! reqwest insists on tokio's reactor. It finds one within `TokioContext::enter`: its connections
//! live on tokio's one thread, and who waits for their answers is a task like any other. (TLS is a
//! feature of reqwest's that this example leaves out.)

use std::error::Error;
use std::time::{Duration, Instant};

use annulus::tokio_context::TokioContext;
use reqwest::{Client, StatusCode};

/// For one answer as a whole.
const TIME_MAX: Duration = Duration::from_secs(10);

#[annulus::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    println!("driver: {}", annulus::driver_info());
    let tokio = TokioContext::start()?;
    let client = Client::builder().timeout(TIME_MAX).build()?;
    let fetch_one = |url: &String| {
        let (tokio, client, url) = (tokio.clone(), client.clone(), url.clone());
        annulus::spawn(async move { tokio.enter(fetch(&client, &url)).await })
    };
    let begun = Instant::now();
    let tasks: Vec<_> = urls.iter().map(fetch_one).collect();
    let mut failed = 0;
    for (url, task) in urls.iter().zip(tasks) {
        match task.await? {
            Ok((status, bytes)) => println!("{url}: {status}, {bytes} bytes"),
            Err(error) => {
                failed += 1;
                println!("{error}");
            }
        }
    }
    println!("{} fetched in {:?}", urls.len() - failed, begun.elapsed());
    if failed > 0 { Err("not all could be fetched".into()) } else { Ok(()) }
}

async fn fetch(client: &Client, url: &str) -> reqwest::Result<(StatusCode, usize)> {
    let mut answer = client.get(url).send().await?;
    let mut bytes = 0;
    while let Some(part) = answer.chunk().await? {
        bytes += part.len();
    }
    Ok((answer.status(), bytes))
}
