package main

// withTags returns a copy of page, which is shared, with the etag and the logTag of each
// version. The tags name the artifact and the log that the page shows. If one was replaced
// since, its tag is that of no file.
func (s *siteScan) withTags(page *VersionPage) (*VersionPage, error) {
	dir, _, err := s.openWatched(artifactsDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	tagged, versions := *page, make([]Version, len(page.Versions))
	tagged.Versions = make([]*Version, len(versions))
	err = s.n.lists.parallel(len(versions), func(i int) error {
		v := &versions[i]
		*v, tagged.Versions[i] = *page.Versions[i], v
		v.logTag = noLogTag
		if log := s.ix.logs.files[v.BuildID]; log != nil {
			v.logTag = logTagOf(log.value.id)
		}
		if s.ix.artifacts.files[v.BuildID] == nil {
			return nil
		}
		// The index has no inode numbers: only a list with tags needs them.
		st, err := s.statArtifact(dir, v.BuildID, false)
		v.etag = fileTag(st.Ino, uint64(v.SizeBytes), uint64(v.CreatedAt.UnixNano()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &tagged, nil
}
