//! Host memory for asynchronous copies from and to a GPU.

use std::ptr;

use cudarc::driver::result::{DriverError, event, free_host, malloc_host, stream};
use cudarc::driver::sys;

/// Bytes of a slot: enough to amortise the start of a transfer.
const SLOT: usize = 1 << 20;
/// The most writes in flight.
const SLOTS: usize = 32;
/// The most bytes of a ticket.
pub(super) const FETCHED: usize = 4096;
/// The most tickets in use.
pub(super) const TICKETS: usize = 16;

/// A ring of slots for writes, a slot for reads, and the bytes of tickets.
pub(super) struct Staging {
    memory: *mut u8,
    /// An event for each slot of the ring, which completes when the last copy from it has arrived; then one for each
    /// ticket.
    arrived: Vec<sys::CUevent>,
    next: usize,
    /// The number of bytes of each ticket in use.
    tickets: [Option<usize>; TICKETS],
}

impl Staging {
    /// The context has to be current, here and in all other methods.
    pub(super) fn new() -> Result<Staging, DriverError> {
        // SAFETY: the memory is written before it is read: by the host before a write, by the GPU before a read.
        let memory = unsafe { malloc_host((SLOTS + 1) * SLOT + TICKETS * FETCHED, 0) }?.cast();
        let mut staging = Staging { memory, arrived: Vec::new(), next: 0, tickets: [None; TICKETS] };
        for _ in 0..SLOTS + TICKETS {
            staging.arrived.push(event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?);
        }
        Ok(staging)
    }

    /// Copies bytes to the device, in the stream's order. Waits only if all slots are in flight.
    ///
    /// # Safety
    /// There has to be room for the bytes at `to`, and the stream has to be one of the current context.
    pub(super) unsafe fn write(
        &mut self,
        to: sys::CUdeviceptr,
        bytes: &[u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        for (piece, to) in bytes.chunks(SLOT).zip((to..).step_by(SLOT)) {
            let (slot, arrived) = (self.next, self.arrived[self.next]);
            self.next = (slot + 1) % SLOTS;
            // SAFETY: the event is ours, and after it nothing reads the slot, which is as long as the longest piece;
            // the GPU then reads what was written here, until the event completes again.
            unsafe {
                event::synchronize(arrived)?;
                let from = self.memory.add(slot * SLOT);
                ptr::copy_nonoverlapping(piece.as_ptr(), from, piece.len());
                sys::cuMemcpyHtoDAsync_v2(to, from.cast(), piece.len(), stream).result()?;
                event::record(arrived, stream)?;
            }
        }
        Ok(())
    }

    /// Copies bytes from the device, and waits for them.
    ///
    /// # Safety
    /// The bytes have to be there at `from`, and the stream has to be one of the current context.
    pub(super) unsafe fn read(
        &mut self,
        from: sys::CUdeviceptr,
        bytes: &mut [u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        for (piece, from) in bytes.chunks_mut(SLOT).zip((from..).step_by(SLOT)) {
            // SAFETY: the slot after the ring's is for reads alone, and as long as the longest piece; the copy into it
            // is complete before it is looked at.
            unsafe {
                let to = self.memory.add(SLOTS * SLOT);
                sys::cuMemcpyDtoHAsync_v2(to.cast(), from, piece.len(), stream).result()?;
                stream::synchronize(stream)?;
                ptr::copy_nonoverlapping(to, piece.as_mut_ptr(), piece.len());
            }
        }
        Ok(())
    }

    /// A free ticket.
    pub(super) fn ticket(&self) -> Option<usize> {
        self.tickets.iter().position(Option::is_none)
    }

    /// Begins to copy at most `FETCHED` bytes from the device for a ticket.
    ///
    /// # Safety
    /// As for `read`.
    pub(super) unsafe fn fetch(
        &mut self,
        ticket: usize,
        from: sys::CUdeviceptr,
        bytes: usize,
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        debug_assert!(bytes <= FETCHED && self.tickets[ticket].is_none());
        // SAFETY: each ticket has its place after the slots, and is free.
        unsafe {
            sys::cuMemcpyDtoHAsync_v2(self.fetched(ticket).cast(), from, bytes, stream).result()?;
            event::record(self.arrived[SLOTS + ticket], stream)?;
        }
        self.tickets[ticket] = Some(bytes);
        Ok(())
    }

    /// The number of bytes of a ticket, if it is in use.
    pub(super) fn out(&self, ticket: usize) -> Option<usize> {
        *self.tickets.get(ticket)?
    }

    /// Waits for the bytes of a ticket in use; `bytes` has their length.
    pub(super) fn collect(&mut self, ticket: usize, bytes: &mut [u8]) -> Result<(), DriverError> {
        debug_assert_eq!(self.tickets[ticket], Some(bytes.len()));
        self.tickets[ticket] = None;
        // SAFETY: the event is ours; after it, the ticket's bytes are those that were fetched.
        unsafe {
            event::synchronize(self.arrived[SLOTS + ticket])?;
            ptr::copy_nonoverlapping(self.fetched(ticket), bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn fetched(&self, ticket: usize) -> *mut u8 {
        // SAFETY: there is memory for all tickets after the slots.
        unsafe { self.memory.add((SLOTS + 1) * SLOT + ticket * FETCHED) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Failures here cannot be handled.
        for event in self.arrived.drain(..) {
            // SAFETY: each event was created, and is not used again.
            let _ = unsafe { event::destroy(event) };
        }
        // SAFETY: the memory came from the matching allocation, and nothing refers to it any more.
        let _ = unsafe { free_host(self.memory.cast()) };
    }
}
