//! What an engine must be able to do: carry bytes from one rank to another. No collective, no group.

/// A broken connection, in the engine's words.
#[derive(Debug)]
pub(crate) struct LinkError(pub(crate) String);

/// One rank's lines to all others. Ranks are ranks in the world; nobody sends to itself.
///
/// What is sent from one rank to another on one channel arrives in the order it was sent, in pieces of the same
/// size; a receive may be larger than what arrives.
pub(crate) trait Link: Send + Sync + 'static {
    /// A send or receive under way. Dropping it ends it: when `drop` returns, nobody touches its memory any more.
    type Transfer: Send;

    /// Starts to send `bytes` bytes, at least one.
    ///
    /// # Safety
    /// They stay readable and unchanged until the transfer is done or dropped.
    unsafe fn send(
        &self,
        to: usize,
        channel: u64,
        data: *const u8,
        bytes: usize,
    ) -> Result<Self::Transfer, LinkError>;

    /// Starts to receive at most `bytes` bytes, at least one.
    ///
    /// # Safety
    /// They stay writable and untouched until the transfer is done or dropped.
    unsafe fn recv(
        &self,
        from: usize,
        channel: u64,
        data: *mut u8,
        bytes: usize,
    ) -> Result<Self::Transfer, LinkError>;

    /// Whether the transfer is done, after waiting a little: some milliseconds at most.
    fn wait(&self, transfer: &mut Self::Transfer) -> Result<bool, LinkError>;
}
