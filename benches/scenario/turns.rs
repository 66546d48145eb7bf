//! Turns: a virtual machine changes its speed within seconds, and what is compared is to meet the same ones.

use std::ops::Range;

/// Turns of each side.
const TURNS: usize = 10;

/// So much work, by each side in pieces: one side does a piece while the others have nothing to do, then the next.
pub(super) async fn by_turns<S>(
    sides: &mut [S],
    count: usize,
    turn: impl AsyncFn(&mut S, Range<usize>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for number in 0..TURNS {
        for side in &mut *sides {
            turn(side, count * number / TURNS..count * (number + 1) / TURNS).await?;
        }
    }
    Ok(())
}
