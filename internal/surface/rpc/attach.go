package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/session"
	"handrail.dev/handrail/internal/foundation/fault"
)

// attach serves /v1/sessions/ID/attach: one WebSocket of AttachFrame messages,
// the same for a browser's terminal, the command line, watching and joining.
// Who may was decided when the ticket was made; a ticket works once.
type attach struct{ d *Deps }

const (
	// window is how many bytes of output may be under way unacknowledged; it
	// is the back-pressure through proxies that buffer.
	window = 1 << 20
	// maxAttachFrame bounds one message from a person.
	maxAttachFrame = 256 << 10
	// pingEvery finds a person whose network is gone.
	pingEvery = 15 * time.Second
)

func (h attach) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The ticket proves who attaches; the origin keeps other pages from
	// spending one that leaked, so it is looked at first.
	if !ofThisPage(r) {
		http.Error(w, "cannot attach: the request comes from another site", http.StatusForbidden)
		return
	}
	a, err := h.d.Sessions.Attach(r.PathValue("id"), r.URL.Query().Get("ticket"))
	if err != nil {
		f := fault.From(err)
		http.Error(w, f.Text, f.Kind.HTTPStatus())
		return
	}
	defer a.Close()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // Accept has answered
	}
	conn.SetReadLimit(maxAttachFrame)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	t := &attached{a: a, conn: conn, credit: make(chan struct{}, 1), left: window}
	go func() {
		defer cancel()
		t.receive(ctx)
	}()
	go t.ping(ctx, cancel)
	if t.send(ctx) {
		_ = conn.Close(websocket.StatusNormalClosure, "")
		return
	}
	_ = conn.CloseNow()
}

// ofThisPage says whether a WebSocket was asked for by a page of this very
// origin, or by no page at all. Which names are ours is checked before.
func ofThisPage(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return len(r.Header.Values("Origin")) == 0
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}

// attached is one open attach stream.
type attached struct {
	a    *session.Attachment
	conn *websocket.Conn

	credit chan struct{}
	acks   ackCount
	left   int64 // bytes that may still be sent; only send touches it
}

// send carries the session to the person until it ends; true if it ended well.
func (t *attached) send(ctx context.Context) bool {
	if !t.write(ctx, &handrailv1.AttachFrame{Frame: &handrailv1.AttachFrame_Session{Session: sessionMessage(t.a.Session())}}) {
		return false
	}
	for {
		e, err := t.a.Recv(ctx)
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		for _, frame := range framesOf(e) {
			if !t.pay(ctx, frame) || !t.write(ctx, frame) {
				return false
			}
		}
	}
}

// pay waits until the person has acknowledged enough for this frame.
func (t *attached) pay(ctx context.Context, f *handrailv1.AttachFrame) bool {
	n := int64(len(f.GetOutput()) + len(f.GetErrorOutput()))
	if n == 0 {
		return true
	}
	t.left -= n
	for t.left += t.acks.take(); t.left < 0; t.left += t.acks.take() {
		select {
		case <-t.credit:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func (t *attached) write(ctx context.Context, f *handrailv1.AttachFrame) bool {
	data, err := proto.Marshal(f)
	return err == nil && t.conn.Write(ctx, websocket.MessageBinary, data) == nil
}

// receive carries the person's input to the session until they leave.
func (t *attached) receive(ctx context.Context) {
	for {
		kind, data, err := t.conn.Read(ctx)
		if err != nil || kind != websocket.MessageBinary {
			return
		}
		var f handrailv1.AttachFrame
		if proto.Unmarshal(data, &f) != nil {
			return
		}
		if _, ok := f.Frame.(*handrailv1.AttachFrame_Acknowledged); ok {
			t.acks.add(int64(f.GetAcknowledged()))
			select {
			case t.credit <- struct{}{}:
			default:
			}
			continue
		}
		e, ok := eventOf(&f)
		if !ok {
			return
		}
		// A watcher may not type, and a session may have ended already: its
		// last output and its exit are still under way, so the stream goes on.
		_ = t.a.Send(e)
	}
}

func (t *attached) ping(ctx context.Context, cancel func()) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		once, done := context.WithTimeout(ctx, pingEvery)
		err := t.conn.Ping(once)
		done()
		if err != nil {
			cancel()
			return
		}
	}
}

// eventOf converts what a person sends.
func eventOf(f *handrailv1.AttachFrame) (session.Event, bool) {
	switch v := f.Frame.(type) {
	case *handrailv1.AttachFrame_Input:
		return session.Event{Kind: session.Input, Data: v.Input}, true
	case *handrailv1.AttachFrame_Resize:
		return session.Event{Kind: session.Resize, Cols: uint16(min(v.Resize.GetColumns(), 1000)), Rows: uint16(min(v.Resize.GetRows(), 1000))}, true
	case *handrailv1.AttachFrame_Eof:
		return session.Event{Kind: session.EOF}, true
	case *handrailv1.AttachFrame_Signal:
		return session.Event{Kind: session.Signal, Text: v.Signal}, true
	}
	return session.Event{}, false
}

// framesOf converts what the session says.
func framesOf(e session.Event) []*handrailv1.AttachFrame {
	switch e.Kind {
	case session.Output:
		return []*handrailv1.AttachFrame{{Frame: &handrailv1.AttachFrame_Output{Output: e.Data}}}
	case session.ErrorOutput:
		return []*handrailv1.AttachFrame{{Frame: &handrailv1.AttachFrame_ErrorOutput{ErrorOutput: e.Data}}}
	case session.Resize:
		return []*handrailv1.AttachFrame{{Frame: &handrailv1.AttachFrame_Resize{
			Resize: &handrailv1.Resize{Columns: uint32(e.Cols), Rows: uint32(e.Rows)}}}}
	case session.Notice:
		return []*handrailv1.AttachFrame{noticeFrame(string(e.Notice), e.Text)}
	case session.State:
		if e.Session == nil {
			return nil
		}
		return []*handrailv1.AttachFrame{{Frame: &handrailv1.AttachFrame_Session{Session: sessionMessage(*e.Session)}}}
	case session.Exit:
		var out []*handrailv1.AttachFrame
		if e.Text != "" {
			out = append(out, noticeFrame(string(session.NoticeEnded), e.Text))
		}
		return append(out, &handrailv1.AttachFrame{Frame: &handrailv1.AttachFrame_ExitStatus{ExitStatus: e.Status}})
	}
	return nil
}

func noticeFrame(kind, text string) *handrailv1.AttachFrame {
	return &handrailv1.AttachFrame{Frame: &handrailv1.AttachFrame_Notice{Notice: &handrailv1.AttachNotice{Kind: kind, Text: text}}}
}
