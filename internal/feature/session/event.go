package session

// EventKind says what an event of a live session is.
type EventKind uint8

// The kinds of event. Input, Resize, EOF and Signal go to the session; the
// others, and Resize, come from it.
const (
	Input EventKind = iota + 1
	Output
	ErrorOutput
	Resize
	EOF
	Signal
	Exit
	Notice
	State
)

// Event is one thing that happens in a live session.
type Event struct {
	Kind       EventKind
	Data       []byte // Input, Output, ErrorOutput
	Cols, Rows uint16 // Resize
	Text       string // Signal: name without SIG; Notice: words for people; Exit: why
	Notice     NoticeKind
	Status     int32  // Exit
	Signal     string // Exit: the signal that ended it, without SIG
	Session    *Info  // State
}

// NoticeKind says what a notice is about.
type NoticeKind string

// The kinds of notice.
const (
	NoticeBanner   NoticeKind = "banner"
	NoticeRefusal  NoticeKind = "refusal"
	NoticePaused   NoticeKind = "paused"
	NoticeResumed  NoticeKind = "resumed"
	NoticeWatching NoticeKind = "watching"
	NoticeLeft     NoticeKind = "left"
	NoticeEnding   NoticeKind = "ending"
	NoticeEnded    NoticeKind = "ended"
	NoticeBehind   NoticeKind = "behind" // a watcher was too slow; what follows begins anew
)

// Owner is where a session's output goes: an SSH channel, a WebSocket. Deliver
// blocks while the person is slow, and so slows the session: nothing is
// dropped. The event's Data is valid until Deliver returns. Abort makes a
// blocked Deliver return; it comes from another goroutine.
type Owner interface {
	Deliver(Event) error
	Abort()
}
