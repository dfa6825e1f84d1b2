//! The only process of an empty pod sandbox: it does nothing. Needs nothing but the standard library, so that a test can
//! build it statically by itself and put it into an image.

fn main() {
    loop {
        std::thread::park();
    }
}
