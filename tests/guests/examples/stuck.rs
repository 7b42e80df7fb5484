//! An agent that never finishes starting: it spins while it is instantiated.

use bureau_sdk::prelude::*;

#[derive(Default)]
struct Stuck;

impl Agent for Stuck {
    async fn on_request(&self, _: &Run, _: Request) -> Result<Reply> {
        Ok(Reply::text("never"))
    }
}

extern "C" fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

// SAFETY: what stands in this section is called as a function without arguments when the module is initialized.
#[used]
#[expect(unsafe_code, reason = "what runs before `main` is a matter of sections")]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = spin;

bureau_sdk::export!(Stuck);
