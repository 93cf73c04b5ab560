//! Saving and loading of cached prefixes.

use std::fs::File;

use super::Engine;
use crate::PrefixFile;
use crate::engine::Checkpoint;
use crate::prefix::{Kept, PrefixTree};
use crate::prefix_file::{self, Belongs, PrefixFileError, Reader, Writer};

impl Engine {
    /// Loads the prefixes that are saved in a file, the most recently used ones if there are too few pages, and makes
    /// [`Engine::save_prefixes`] save to this file. It must be called before anything is computed. Returns the number
    /// of loaded pages, none if there is no file yet. If anything is wrong with the file, nothing of it is loaded.
    ///
    /// # Errors
    /// When the file exists and cannot be read, has another format, is damaged, or belongs to another model or version;
    /// when it could not be written later; when another process uses it; or when the device fails. If it [can be
    /// replaced](PrefixFileError::is_replaceable), saving will replace it.
    pub fn load_prefixes(&mut self, file: PrefixFile) -> Result<usize, PrefixFileError> {
        let mut tree = PrefixTree::new(self.page_tokens);
        self.prefix_file = None;
        let lock = prefix_file::lock(&file.path)?;
        if let Some(cache) = &mut self.cache {
            cache.clear(&mut self.pool, &mut self.slots.pool);
        }
        let result = self.read_prefixes(&file, &lock, &mut tree);
        if result.is_err() {
            tree.clear(&mut self.pool, &mut self.slots.pool);
        }
        tree.changed = false;
        let pages = tree.len();
        self.cache = Some(tree);
        if result.as_ref().map_or_else(PrefixFileError::is_replaceable, |()| true) {
            self.prefix_file = Some((file, lock));
        }
        result.map(|()| pages)
    }

    /// Whether the cached prefixes differ from those in the file. False without a file.
    pub fn has_unsaved_prefixes(&self) -> bool {
        self.prefix_file.is_some() && self.cache.as_ref().is_some_and(|cache| cache.changed)
    }

    /// Saves the cached prefixes. The previous file is replaced when the new one is complete and synced to disk.
    /// Returns the number of pages.
    ///
    /// # Errors
    /// When the file cannot be written, or the device fails.
    pub fn save_prefixes(&mut self) -> Result<usize, PrefixFileError> {
        let (Some((file, lock)), Some(cache)) = (&mut self.prefix_file, &mut self.cache) else { return Ok(0) };
        let failed = |source| PrefixFileError::Write { path: file.path.clone(), source };
        let (mut bytes, mut slot_bytes) = (vec![0; self.baked.page_bytes()], vec![0; self.slots.bytes]);
        let belongs = Belongs::new(file, &self.layout, self.page_tokens, [bytes.len(), slot_bytes.len()]);
        let mut writer = Writer::create(&file.path, &belongs).map_err(failed)?;
        for kept in cache.by_use() {
            self.baked.read_page(kept.page, &mut bytes)?;
            writer.record(&kept, &bytes).map_err(failed)?;
            for &Checkpoint { position, slot } in kept.checkpoints {
                self.baked.read_slot(slot, &mut slot_bytes)?;
                writer.checkpoint(position, &slot_bytes).map_err(failed)?;
            }
            writer.end_record().map_err(failed)?;
        }
        *lock = writer.finish().map_err(failed)?;
        cache.changed = false;
        Ok(cache.len())
    }

    fn read_prefixes(
        &mut self,
        file: &PrefixFile,
        opened: &File,
        tree: &mut PrefixTree,
    ) -> Result<(), PrefixFileError> {
        prefix_file::check_writable(&file.path)?;
        let (mut tokens, mut bytes, mut before) = (Vec::new(), vec![0; self.baked.page_bytes()], Vec::new());
        let mut slot_bytes = vec![0; self.slots.bytes];
        let belongs = Belongs::new(file, &self.layout, self.page_tokens, [bytes.len(), slot_bytes.len()]);
        let Some(mut reader) = Reader::open(&file.path, opened, &belongs)? else { return Ok(()) };
        while let Some((parent, salt, count)) = reader.record(&mut tokens, &mut bytes)? {
            // Records without room are read, too, as they could be damaged.
            let page = if tree.len() < self.most_prefixes { self.pool.take() } else { None };
            let mut checkpoints = Vec::new();
            let read = self.read_checkpoints(&mut reader, count, page.is_some(), &mut slot_bytes, &mut checkpoints);
            let kept = page.map(|page| Kept { parent, salt, tokens: &tokens, page, checkpoints: &checkpoints });
            let restored = read.and_then(|()| match kept {
                Some(kept) if !tree.restore(kept, &mut before) => {
                    Err(reader.damaged(format!("page {} is not where it could be", tree.len() + 1)))
                }
                _ => Ok(()),
            });
            if restored.is_err() {
                page.into_iter().for_each(|page| self.pool.release(page));
                checkpoints.iter().for_each(|kept| self.slots.pool.release(kept.slot));
            }
            restored?;
            if let Some(page) = page {
                self.baked.write_page(page, &bytes)?;
            }
        }
        Ok(())
    }

    /// Reads the checkpoints of a record into slots, if they are wanted and there are any left.
    fn read_checkpoints(
        &mut self,
        reader: &mut Reader,
        count: usize,
        wanted: bool,
        bytes: &mut [u8],
        checkpoints: &mut Vec<Checkpoint>,
    ) -> Result<(), PrefixFileError> {
        for _ in 0..count {
            let position = reader.checkpoint(bytes)?;
            let Some(slot) = (if wanted { self.slots.pool.take() } else { None }) else { continue };
            checkpoints.push(Checkpoint { position, slot });
            self.baked.write_slot(slot, bytes)?;
        }
        reader.end_record()
    }
}
