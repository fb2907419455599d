//! Builds the servers that are written in C, each only where its library is installed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(libuv)");
    println!("cargo::rerun-if-changed=native/libuv.c");
    // Debian's package is libuv1-dev. Where it is missing the benchmark says so when it runs.
    match pkg_config::Config::new().probe("libuv") {
        Ok(libuv) => {
            cc::Build::new()
                .file("native/libuv.c")
                .includes(libuv.include_paths)
                .try_compile("versus_libuv")?;
            println!("cargo::rustc-cfg=libuv");
        }
        Err(error) => println!("cargo::warning=no server on libuv: {error}"),
    }
    Ok(())
}
