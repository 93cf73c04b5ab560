//! Cached prefixes that outlive the process.

use std::fs::File;

use super::Engine;
use crate::PrefixFile;
use crate::prefix::{Kept, PrefixTree};
use crate::prefix_file::{self, Belongs, PrefixFileError, Reader, Writer};

impl Engine {
    /// Makes the prefixes known that are saved in a file, as many as there are pages for, those that were of use last;
    /// and saves them there when [`Engine::save_prefixes`] is called. It has to come before anything is computed. Returns
    /// how many pages that are: none where there is no file yet. Whatever is wrong with the file, nothing of it is known.
    ///
    /// # Errors
    /// When the file is there and cannot be read, is another one, is damaged, or belongs to something else; or could not
    /// be written later; or another process uses it; or the device fails. Where it [can be replaced](PrefixFileError::is_replaceable), it will be.
    pub fn load_prefixes(&mut self, file: PrefixFile) -> Result<usize, PrefixFileError> {
        let mut tree = PrefixTree::new(self.page_tokens);
        self.prefix_file = None;
        let lock = prefix_file::lock(&file.path)?;
        if let Some(cache) = &mut self.cache {
            cache.clear(&mut self.pool);
        }
        let result = self.read_prefixes(&file, &lock, &mut tree);
        if result.is_err() {
            tree.clear(&mut self.pool);
        }
        tree.changed = false;
        let pages = tree.len();
        self.cache = Some(tree);
        if result.as_ref().map_or_else(PrefixFileError::is_replaceable, |()| true) {
            self.prefix_file = Some((file, lock));
        }
        result.map(|()| pages)
    }

    /// Whether the file lacks prefixes that are cached, or has some that are not any more. Never without a file.
    pub fn has_unsaved_prefixes(&self) -> bool {
        self.prefix_file.is_some() && self.cache.as_ref().is_some_and(|cache| cache.changed)
    }

    /// Saves what is kept of closed sequences. The file that was there before is replaced when the new one is whole and on
    /// the disk. Returns how many pages that are.
    ///
    /// # Errors
    /// When the file cannot be written, or the device fails.
    pub fn save_prefixes(&mut self) -> Result<usize, PrefixFileError> {
        let (Some((file, lock)), Some(cache)) = (&mut self.prefix_file, &mut self.cache) else { return Ok(0) };
        let failed = |source| PrefixFileError::Write { path: file.path.clone(), source };
        let mut bytes = vec![0; self.baked.page_bytes()];
        let belongs = Belongs::new(file, &self.layout, self.page_tokens, bytes.len());
        let mut writer = Writer::create(&file.path, &belongs).map_err(failed)?;
        for Kept { parent, salt, tokens, page } in cache.by_use() {
            self.baked.read_page(page, &mut bytes)?;
            writer.record(parent, salt, tokens, &bytes).map_err(failed)?;
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
        let belongs = Belongs::new(file, &self.layout, self.page_tokens, bytes.len());
        let Some(mut reader) = Reader::open(&file.path, opened, &belongs)? else { return Ok(()) };
        while let Some((parent, salt)) = reader.record(&mut tokens, &mut bytes)? {
            // What there is no page for is read nevertheless: it could be damaged.
            let Some(page) = (tree.len() < self.most_prefixes).then(|| self.pool.take()).flatten() else { continue };
            if !tree.restore(Kept { parent, salt, tokens: &tokens, page }, &mut before) {
                self.pool.release(page);
                return Err(reader.damaged(format!("page {} is not where it could be", tree.len() + 1)));
            }
            self.baked.write_page(page, &bytes)?;
        }
        Ok(())
    }
}
