//! Which tiles make a block.
//!
//! ```text
//! 14 x 14 tiles, blocks of at most 56, two threads
//!     whole rows:  4 x 14, 4 x 14 │ 4 x 14, 2 x 14       one thread has 112 tiles, the other 84
//!     half rows:   7 x 7,  7 x 7  │ 7 x 7,  7 x 7        98 each
//! ```
//!
//! Nothing of this changes a bit.

use crate::parts::balanced;

/// A block of tiles of some images and one group.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// The first image, and how many there are.
    pub image: usize,
    pub images: usize,
    pub group: usize,
    /// Its first tile in each image, and how many there are.
    pub row: usize,
    pub column: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Block {
    /// Tiles of the block.
    pub fn tiles(&self) -> usize {
        self.images * self.rows * self.columns
    }
}

/// Images, rows and columns of a block of at most `most` tiles: whole rows first, then whole images. So all blocks one
/// after the other hold the tiles of the batch in order, whatever `most` is.
pub(super) fn block_of(tiles: [usize; 2], batch: usize, most: usize) -> [usize; 3] {
    let columns = balanced(tiles[1], most);
    let rows = if columns < tiles[1] { 1 } else { balanced(tiles[0], most / columns) };
    let whole = rows >= tiles[0] && columns >= tiles[1];
    let images = if whole { balanced(batch, most / (rows * columns).max(1)) } else { 1 };
    [images, rows, columns]
}

/// The tiles of a call in blocks.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    /// Rows of tiles of an image, and its columns: of cells that no cut parts.
    pub tiles: [usize; 2],
    /// Tiles of a cell.
    pub cell: usize,
    pub batch: usize,
    pub groups: usize,
    /// Images of a block, and its rows and columns.
    pub block: [usize; 3],
    /// Threads share the steps of a block.
    pub shared: bool,
}

/// What a tile needs, to tell what blocks cost.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Seconds of its products.
    pub seconds: f64,
    /// Floats of its transforms where a thread does a block alone, and where all share it.
    pub floats: [usize; 2],
    /// Floats of a block that stay in the cache of a core.
    pub near: usize,
    /// Floats of the weights, which each block reads.
    pub weights: usize,
    /// Tiles that no cut parts.
    pub cell: usize,
    /// Tiles of a block that all threads share, at most: the workspace has room for no more.
    pub shared: usize,
}

// Estimates of what blocks cost, of use only beside each other.

/// What the three steps of a shared block cost beside their work: seconds until all threads have come.
const MEETING: f64 = 6e-6;
/// Tiles that a shared block costs beside that, however small it is.
const STEPS: f64 = 1.0;
/// What reading the weights once for each block costs, in tiles: of weights that are near or of which each thread reads
/// a part, of those that a thread reads alone from the third-level cache, and of those that come from memory.
const READING: f64 = 3.0;
const READING_MANY: f64 = 6.0;
const READING_FAR: f64 = 20.0;
/// How much longer a tile takes where threads share its block: their parts are never even.
const UNEVEN: f64 = 1.15;
/// How much longer a tile takes in a block whose transforms leave the cache of a core.
const LEAVES: f64 = 1.3;
/// Floats of weights that do not stay in the second-level cache, and those that do not stay in the third.
const MANY: usize = 1 << 20;
const FAR: usize = 1 << 22;

/// Blocks of each thread from which on the last ones hardly matter, and nothing is searched.
const MANY_BLOCKS: usize = 8;
/// Pieces of a row of tiles that are tried, at most: narrow blocks transform more pixels twice.
const MOST_PIECES: usize = 3;
/// Numbers of parts that are tried down the image and across the batch, from the least on: more make blocks that are
/// too small for their weights.
const TRIED: usize = 4;
/// Threads, and blocks of each, up to which the blocks are counted out among them: a search for every call must be
/// short.
const FEW: usize = 8;
const FEW_BLOCKS: usize = 4;

impl Tile {
    /// What a block costs beside its tiles, in tiles: threads that share it each read a part of the weights.
    fn reading(&self, shared: bool) -> f64 {
        match self.weights {
            MANY..FAR if !shared => READING_MANY,
            ..FAR => READING,
            _ => READING_FAR,
        }
    }

    /// What a tile costs in a block of so many, of which each core has a `part`: more where they leave its cache, and
    /// where threads share a block, for then their parts are never even.
    fn cost(&self, shared: bool, tiles: usize, part: usize) -> f64 {
        let leaves = self.floats[usize::from(shared)] * tiles / part > self.near;
        (if shared { UNEVEN } else { 1.0 }) * (if leaves { LEAVES } else { 1.0 })
    }
}

/// The parts of `items` that are tried, each of at most `most`: the largest first, none twice.
fn tried(items: usize, most: usize) -> impl Iterator<Item = usize> {
    let least = items.div_ceil(most.max(1));
    once((least..least + TRIED).map(move |count| items.div_ceil(count)))
}

/// Sizes without those that equal the one before.
fn once(sizes: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    let mut last = None;
    sizes.filter(move |&size| last.replace(size) != Some(size))
}

/// The sizes of parts of `part` items each, of which the last may be smaller.
fn sizes(items: usize, part: usize) -> impl Iterator<Item = usize> {
    let mut left = items;
    std::iter::from_fn(move || {
        let size = part.min(left);
        left -= size;
        (size > 0).then_some(size)
    })
}

impl Blocks {
    /// Blocks of at most `most` tiles that give all threads as much to do.
    pub fn new(tiles: [usize; 2], batch: usize, groups: usize, most: usize, slots: usize, tile: Tile) -> Self {
        let with = |block: [usize; 3], shared: bool| Self { tiles, cell: tile.cell, batch, groups, block, shared };
        let most = (most / tile.cell).max(1);
        let plain = with(block_of(tiles, batch, most), false);
        if slots <= 1 || plain.count() == 0 || plain.count() / slots >= MANY_BLOCKS {
            return plain;
        }
        let mut best = (f64::INFINITY, plain);
        let mut consider = |block: [usize; 3]| {
            for shared in [false, true] {
                let blocks = with(block, shared);
                if shared && blocks.block_tiles() > tile.shared {
                    continue;
                }
                let cost = if shared { blocks.together(slots, tile) } else { blocks.longest(slots, tile) };
                if cost < best.0 {
                    best = (cost, blocks);
                }
            }
        };
        // The first of these is the plain one.
        for columns in once((1..=MOST_PIECES).map(|pieces| balanced(tiles[1], tiles[1].div_ceil(pieces).min(most)))) {
            for rows in tried(tiles[0], most / columns) {
                if [rows, columns] != tiles {
                    consider([1, rows, columns]);
                    continue;
                }
                for images in tried(batch, most / (rows * columns)) {
                    consider([images, rows, columns]);
                }
            }
        }
        best.1
    }

    /// All tiles.
    fn all(&self) -> usize {
        self.batch * self.groups * self.tiles[0] * self.tiles[1] * self.cell
    }

    /// Tiles of a block.
    pub fn block_tiles(&self) -> usize {
        self.block.iter().product::<usize>() * self.cell
    }

    /// Blocks across the images, down and along.
    fn across(&self) -> [usize; 3] {
        let [images, rows, columns] = self.block;
        [self.batch.div_ceil(images), self.tiles[0].div_ceil(rows), self.tiles[1].div_ceil(columns)]
    }

    /// Blocks of the call.
    pub fn count(&self) -> usize {
        self.across().iter().product::<usize>() * self.groups
    }

    /// A block.
    pub fn at(&self, index: usize) -> Block {
        let [_, down, along] = self.across();
        let (row, column) = (index / along % down * self.block[1], index % along * self.block[2]);
        let rest = index / along / down;
        let image = rest / self.groups * self.block[0];
        Block {
            image,
            images: self.block[0].min(self.batch - image),
            group: rest % self.groups,
            row,
            column: column * self.cell,
            rows: self.block[1].min(self.tiles[0] - row),
            columns: self.block[2].min(self.tiles[1] - column) * self.cell,
        }
    }

    /// The most that a thread has to do, in tiles, where each takes the next block when it is done.
    fn longest(&self, slots: usize, tile: Tile) -> f64 {
        let (count, largest) = (self.count(), self.block_tiles());
        let cost = |tiles: usize| tiles as f64 * tile.cost(false, largest, 1) + tile.reading(false);
        let turns = count.div_ceil(slots);
        if slots > FEW || turns > FEW_BLOCKS {
            return turns as f64 * cost(largest);
        }
        // The blocks in order, without the divisions that number `index` would take.
        let mut loads = [0.0f64; FEW];
        let loads = &mut loads[..slots];
        for images in sizes(self.batch, self.block[0]) {
            for _ in 0..self.groups {
                for rows in sizes(self.tiles[0], self.block[1]) {
                    for columns in sizes(self.tiles[1], self.block[2]) {
                        let mut least = 0;
                        for slot in 1..slots {
                            if loads[slot] < loads[least] {
                                least = slot;
                            }
                        }
                        loads[least] += cost(images * rows * columns * self.cell);
                    }
                }
            }
        }
        loads.iter().copied().fold(0.0, f64::max)
    }

    /// The same where all threads share each block.
    fn together(&self, slots: usize, tile: Tile) -> f64 {
        let (count, largest) = (self.count() as f64, self.block_tiles());
        let work = self.all() as f64 * tile.cost(true, largest, slots) + count * tile.reading(true);
        work / slots as f64 + count * (STEPS + MEETING / tile.seconds)
    }
}
