//! Saving and loading of cached prefixes.

use std::fs::File;

use super::Engine;
use crate::PrefixFile;
use crate::engine::Checkpoint;
use crate::pages::NONE;
use crate::prefix::{Kept, PrefixTree};
use crate::prefix_file::{self, Belongs, PrefixFileError, Reader, Record, Writer};

impl Engine {
    /// Loads the prefixes that are saved in a file, the most recently used ones if there are too few pages, and makes
    /// [`Engine::save_prefixes`] save to this file. It must be called before anything is computed. Returns how many pages
    /// of tokens were loaded, none if there is no file yet. If anything is wrong with the file, nothing of it is loaded.
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
            cache.clear(&mut self.groups, &mut self.slots.pool);
        }
        let result = self.read_prefixes(&file, &lock, &mut tree);
        if result.is_err() {
            tree.clear(&mut self.groups, &mut self.slots.pool);
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
    /// Returns how many pages of tokens there are.
    ///
    /// # Errors
    /// When the file cannot be written, or the device fails.
    pub fn save_prefixes(&mut self) -> Result<usize, PrefixFileError> {
        let (Some((file, lock)), Some(cache)) = (&mut self.prefix_file, &mut self.cache) else { return Ok(0) };
        let failed = |source| PrefixFileError::Write { path: file.path.clone(), source };
        let page_bytes: Vec<usize> = self.groups.iter().map(|group| group.bytes).collect();
        let (mut bytes, mut slot_bytes) = (Vec::new(), vec![0; self.slots.bytes]);
        let belongs = Belongs::new(file, &self.layout, self.page_tokens, page_bytes.clone(), slot_bytes.len());
        let mut writer = Writer::create(&file.path, &belongs).map_err(failed)?;
        for kept in cache.by_use() {
            writer.record(&kept).map_err(failed)?;
            for (group, &page) in kept.pages.iter().enumerate().filter(|(_, page)| **page != NONE) {
                bytes.resize(page_bytes[group], 0);
                if !bytes.is_empty() {
                    self.baked.read_page(group, page, &mut bytes)?;
                    writer.page(&bytes).map_err(failed)?;
                }
            }
            writer.checkpoints(kept.checkpoints.len()).map_err(failed)?;
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
        let (mut tokens, mut before) = (Vec::new(), Vec::new());
        let (mut bytes, mut slot_bytes) = (Vec::new(), vec![0; self.slots.bytes]);
        let page_bytes: Vec<usize> = self.groups.iter().map(|group| group.bytes).collect();
        let belongs = Belongs::new(file, &self.layout, self.page_tokens, page_bytes, slot_bytes.len());
        let Some(mut reader) = Reader::open(&file.path, opened, &belongs)? else { return Ok(()) };
        let mut has_room = true;
        let mut loaded = 0;
        while let Some(Record { parent, salt, pages: there, is_wanted }) = reader.record(&mut tokens)? {
            // Records without room are read, too, as they could be damaged.
            has_room &= loaded < self.most_prefix_bytes && self.groups[0].pool.available() > 0;
            let (mut pages, mut checkpoints) = (Vec::with_capacity(there.len()), Vec::new());
            let mut read = Ok(());
            for (group, is_there) in there.into_iter().enumerate() {
                let taken = if has_room && is_there { self.groups[group].pool.take() } else { None };
                pages.push(taken.unwrap_or(NONE));
                if is_there && read.is_ok() {
                    bytes.resize(self.groups[group].bytes, 0);
                    read = reader.page(&mut bytes).and_then(|()| self.put_page(group, taken, &bytes));
                    loaded += taken.map_or(0, |_| bytes.len());
                }
            }
            let read =
                read.and_then(|()| self.read_checkpoints(&mut reader, has_room, &mut slot_bytes, &mut checkpoints));
            let kept = Kept { parent, salt, tokens: &tokens, pages: &pages, is_wanted, checkpoints: &checkpoints };
            let restored = read.and_then(|()| match has_room {
                true if !tree.restore(kept, &mut before) => {
                    Err(reader.damaged(format!("page {} is not where it could be", tree.len() + 1)))
                }
                _ => Ok(()),
            });
            if restored.is_err() {
                pages.iter().zip(&mut self.groups).for_each(|(&page, group)| group.release(page));
                checkpoints.iter().for_each(|kept| self.slots.pool.release(kept.slot));
            }
            restored?;
        }
        Ok(())
    }

    fn put_page(&mut self, group: usize, page: Option<u32>, bytes: &[u8]) -> Result<(), PrefixFileError> {
        let page = page.filter(|_| !bytes.is_empty());
        Ok(page.map_or(Ok(()), |page| self.baked.write_page(group, page, bytes))?)
    }

    /// Reads the checkpoints of a record into slots, if they are wanted and there are any left.
    fn read_checkpoints(
        &mut self,
        reader: &mut Reader,
        wanted: bool,
        bytes: &mut [u8],
        checkpoints: &mut Vec<Checkpoint>,
    ) -> Result<(), PrefixFileError> {
        for _ in 0..reader.checkpoints()? {
            let position = reader.checkpoint(bytes)?;
            let Some(slot) = (if wanted { self.slots.pool.take() } else { None }) else { continue };
            checkpoints.push(Checkpoint { position, slot });
            self.baked.write_slot(slot, bytes)?;
        }
        reader.end_record()
    }
}
