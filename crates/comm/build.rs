//! Builds the C face of Gloo, with the feature `gloo` alone; without it nothing but Rust is needed.

fn main() {
    println!("cargo:rerun-if-changed=src/gloo/shim.cc");
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "gloo")]
    {
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .flag_if_supported("-Wno-unused-parameter")
            .file("src/gloo/shim.cc")
            .compile("phalanx_gloo");
        println!("cargo:rustc-link-lib=gloo");
    }
}
