//! Greets whoever connects: `cargo run --example hello`, then `nc 127.0.0.1 PORT`.
use annulus::net::TcpListener;

#[annulus::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        listener.accept().await?.0.write_all(b"hello\n").await?;
    }
}
