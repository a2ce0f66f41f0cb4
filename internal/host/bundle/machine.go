package bundle

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"handrail.dev/handrail/internal/foundation/fault"
)

// machineOf is what every machine has, and says nothing about whose it is.
func machineOf(dir string) any {
	var out struct {
		System  string            `json:"system"`
		Release string            `json:"release"`
		Build   string            `json:"build"`
		Machine string            `json:"machine"`
		OS      map[string]string `json:"os"`
		LSM     string            `json:"lsm,omitempty"`
		Init    string            `json:"init,omitempty"`
		CPUs    int               `json:"cpus"`
		Memory  map[string]string `json:"memory"`
		Uptime  int64             `json:"uptime_seconds"`
		Now     string            `json:"now"`
		Free    uint64            `json:"free_bytes"` // for the data folder
		Files   uint64            `json:"open_files"` // that a process may have
	}
	var u syscall.Utsname
	if syscall.Uname(&u) == nil {
		out.System, out.Release, out.Build, out.Machine = chars(u.Sysname), chars(u.Release), chars(u.Version), chars(u.Machine)
	}
	out.OS = values("/etc/os-release", "=", "ID", "VERSION_ID", "ID_LIKE")
	out.Memory = values("/proc/meminfo", ":", "MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
	out.LSM = firstLine("/sys/kernel/security/lsm")
	out.Init = firstLine("/proc/1/comm")
	out.CPUs, out.Now = runtime.NumCPU(), time.Now().UTC().Format(time.RFC3339)
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		out.Uptime = int64(info.Uptime)
	}
	var disk syscall.Statfs_t
	if syscall.Statfs(dir, &disk) == nil {
		out.Free = disk.Bavail * uint64(disk.Bsize)
	}
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		out.Files = limit.Max
	}
	return out
}

func chars(c [65]int8) string {
	var b []byte
	for _, x := range c {
		if x == 0 {
			break
		}
		b = append(b, byte(x))
	}
	return string(b)
}

// values are those lines of a file that have one of the names.
func values(path, between string, names ...string) map[string]string {
	out := map[string]string{}
	text, _ := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), between)
		for _, n := range names {
			if n == name {
				out[n] = strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
	}
	return out
}

func firstLine(path string) string {
	text, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// folderLine is a folder of the data folder, with all that is below it.
type folderLine struct {
	Path  string `json:"path"`
	Mode  string `json:"mode"`
	Owner uint32 `json:"owner"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"`
}

// folderDepth is how far down folders and files have lines of their own; what is
// deeper may be named by somebody.
const folderDepth, folderMost = 2, 1 << 20

func folderOf(dir string) ([]folderLine, error) {
	var all []folderLine
	at := map[string]int{}
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if seen++; seen > folderMost {
			return fs.SkipAll
		}
		if err != nil {
			return nil // what goes away while we look, or what is another's
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := d.Info()
		if err != nil {
			return nil
		}
		depth := strings.Count(rel, "/") + 1
		if depth <= folderDepth {
			line := folderLine{Path: rel, Mode: info.Mode().String()}
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				line.Owner = st.Uid
			}
			at[rel] = len(all)
			all = append(all, line)
		}
		if info.Mode().IsRegular() {
			parts := strings.SplitN(rel, "/", folderDepth+1)
			i := at[filepath.Join(parts[:min(len(parts), folderDepth)]...)]
			all[i].Files++
			all[i].Bytes += info.Size()
		}
		return nil
	})
	if err == nil && len(all) == 0 {
		err = fault.New(fault.NotFound, "cannot read the data folder")
	}
	return all, err
}

// heapNames rewrites the texts of a pprof profile: the files that the program
// was mapped from lie where somebody put them.
func heapNames(zipped []byte, rename func(string) string) ([]byte, error) {
	const stringTable = 6 // of message Profile
	in, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(in, 8*maxPart))
	if err != nil {
		return nil, err
	}
	var clean []byte
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil, errors.New("it is no profile")
		}
		size := protowire.ConsumeFieldValue(number, kind, raw[n:])
		if size < 0 {
			return nil, errors.New("it is no profile")
		}
		if number == stringTable && kind == protowire.BytesType {
			text, _ := protowire.ConsumeString(raw[n:])
			clean = protowire.AppendString(protowire.AppendTag(clean, number, kind), rename(text))
		} else {
			clean = append(clean, raw[:n+size]...)
		}
		raw = raw[n+size:]
	}
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	_, err = zip.Write(clean)
	err = errors.Join(err, zip.Close())
	return out.Bytes(), err
}
