//! reqwest in tasks of annulus: the example, and what it leaves out.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use annulus::tokio_context::TokioContext;
use annulus::{Runtime, on_each_shard};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use reqwest::Client;

use common::bytes::Keyed;
use common::each_driver;
use common::peer::peer;
use common::process::Running;
use common::steps::listen;

#[path = "../../../tests/common/mod.rs"]
mod common;

each_driver! {
    async fn the_example_fetches_all_and_tells_what_it_could_not() {
        let addr = serve().await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_fetch"));
        command.env("ANNULUS_DRIVER", annulus::driver_info().driver().to_string());
        command.args((0..20).map(|number| format!("http://{addr}/{}", number * 50_000)));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        command.arg(format!("http://{nobody}/"));
        // The server is this runtime: the wait must not hold it up.
        let (status, output, _) = peer(move || Running::start(command).finish()).await;
        for number in 0..20 {
            let bytes = number * 50_000;
            let line = format!("http://{addr}/{bytes}: 200 OK, {bytes} bytes\n");
            assert!(output.contains(&line), "without {line}:\n{output}");
        }
        assert!(output.contains("20 fetched in "), "{output}");
        assert_eq!(status.code(), Some(1), "{nobody} was fetched:\n{output}");
    }

    async fn one_client_serves_all_shards() {
        let addr = serve().await;
        let client = Client::new();
        let results = on_each_shard(async move |shard| {
            let tokio = TokioContext::start().unwrap();
            for round in 1..20 {
                let len = round * 1000 + shard.index();
                let (url, client) = (format!("http://{addr}/{len}"), client.clone());
                let body = async move { client.get(url).send().await?.bytes().await };
                assert!(tokio.enter(body).await.unwrap() == Keyed(1).bytes(0, len));
            }
        });
        for result in results.await {
            result.unwrap();
        }
    }

    async fn a_request_that_is_dropped_costs_no_other() {
        let addr = serve().await;
        let (tokio, client) = (TokioContext::start().unwrap(), Client::new());
        for _ in 0..20 {
            let never = client.get(format!("http://{addr}/never"));
            let limit = Duration::from_millis(2);
            let asked = annulus::time::timeout(limit, tokio.enter(async { never.send().await }));
            assert!(asked.await.is_err(), "an answer that never comes has come");
            let greeting = client.get(format!("http://{addr}/5"));
            let answer = tokio.enter(async { greeting.send().await?.bytes().await }).await;
            assert_eq!(answer.unwrap().len(), 5);
        }
    }

    fn a_client_may_be_used_by_one_runtime_after_the_other(driver: Driver) {
        let client = Client::new();
        for _ in 0..3 {
            let runtime = Runtime::builder().driver(driver).build().unwrap();
            runtime.block_on(async {
                let tokio = TokioContext::start().unwrap();
                let url = format!("http://{}/100000", serve().await);
                let answer = tokio.enter(async { client.get(url).send().await?.bytes().await });
                assert_eq!(answer.await.unwrap().len(), 100_000);
            });
        }
    }
}

/// Answers `/N` with N bytes, and `/never` never.
async fn serve() -> SocketAddr {
    let (listener, addr) = listen().await;
    annulus::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let http = http1::Builder::new();
            // A client that breaks off ends its own connection.
            annulus::spawn(async move { http.serve_connection(stream, service_fn(answer)).await });
        }
    });
    addr
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path()[1..].parse() {
        Ok(len) => Ok(Response::new(Full::from(Keyed(1).bytes(0, len)))),
        Err(_never) => std::future::pending().await,
    }
}
