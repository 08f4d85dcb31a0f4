package ledger

import (
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Limits on one transaction, so that no writer makes a log that readers can not hold.
const (
	MaxPacks  = 65536
	MaxPoints = 4096
	maxText   = 4096
	maxRaw    = 1 << 40
)

// Apply makes t, with number Seq+1 and the object's hash, part of the state. If the rules refuse it the state is as if it had
// not been, but for its number: it returns why. This is how everybody reads a log.
func (s *State) Apply(t *Transaction, hash [32]byte) error {
	err := s.Check(t)
	s.Seq++
	s.Hash = hash
	if err == nil {
		s.apply(t)
	}
	return err
}

// Check tells why the rules refuse t as the next transaction. It does not change the state.
func (s *State) Check(t *Transaction) error {
	switch k := t.GetKind().(type) {
	case *Transaction_Begin:
		return s.checkBegin(k.Begin)
	case *Transaction_Add:
		if len(k.Add.GetPacks()) == 0 {
			return s.checkAlive(k.Add.GetSession())
		}
		if _, err := s.writer(k.Add.GetSession()); err != nil {
			return err
		}
		return s.checkPacks(k.Add.GetPacks())
	case *Transaction_Commit:
		return s.checkCommit(k.Commit)
	case *Transaction_End:
		_, err := id16("session", k.End.GetSession())
		return err
	case *Transaction_Forget:
		return s.checkForget(k.Forget)
	case *Transaction_Condemn:
		return s.checkCondemn(k.Condemn)
	case *Transaction_Reprieve:
		return s.checkReprieve(k.Reprieve)
	case *Transaction_Drop:
		return s.checkDrop(k.Drop)
	case *Transaction_Dropped:
		return s.checkDropped(k.Dropped)
	case *Transaction_Rotate:
		if g := k.Rotate.GetGeneration(); g != s.Generation+1 {
			return fmt.Errorf("data key %d: %w: the present one is %d", g, ErrRefused, s.Generation)
		}
	case *Transaction_Mark:
		for _, ids := range [][][]byte{k.Mark.GetDamaged(), k.Mark.GetRepaired()} {
			if err := all16("pack", ids); err != nil {
				return err
			}
		}
		if len(k.Mark.GetWhat()) > 64 || len(s.Marks) >= 64 && s.Marks[k.Mark.GetWhat()] == nil {
			return fmt.Errorf("mark: %w: too many kinds of marks", ErrRefused)
		}
	case *Transaction_Require:
		if k.Require.GetWriter() < s.MinWriter || k.Require.GetCollector() < s.MinReclaim {
			return fmt.Errorf("require: %w: what is required never gets less", ErrRefused)
		}
	case *Transaction_Keep:
		id, err := id16("point", k.Keep.GetPoint())
		if err != nil {
			return err
		}
		if s.Points[id] == nil {
			return fmt.Errorf("point %x: %w", id, ErrGone)
		}
		return checkLabels(k.Keep.GetLabels())
	}
	return nil
}

func (s *State) checkBegin(b *Begin) error {
	id, err := id16("session", b.GetSession())
	if err != nil {
		return err
	}
	if s.Sessions[id] != nil {
		return fmt.Errorf("session %x: %w", id, ErrExists)
	}
	if len(b.GetPurpose()) > maxText || len(b.GetPins()) > MaxPoints {
		return fmt.Errorf("session %x: %w: its purpose or its list of points is too long", id, ErrRefused)
	}
	for _, p := range b.GetPins() {
		pin, err := id16("point", p)
		if err != nil {
			return err
		}
		if s.Points[pin] == nil {
			return fmt.Errorf("point %x: %w", pin, ErrGone)
		}
	}
	return nil
}

// checkAlive is for a session that only shows that it lives.
func (s *State) checkAlive(session []byte) error {
	id, err := id16("session", session)
	if err == nil && s.Sessions[id] == nil {
		err = fmt.Errorf("session %x: %w", id, ErrEnded)
	}
	return err
}

func (s *State) writer(session []byte) (*SessionState, error) {
	id, err := id16("session", session)
	if err != nil {
		return nil, err
	}
	o := s.Sessions[id]
	if o == nil {
		return nil, fmt.Errorf("session %x: %w", id, ErrEnded)
	}
	if o.Reader {
		return nil, fmt.Errorf("session %x: %w: it only reads", id, ErrRefused)
	}
	return o, nil
}

func (s *State) checkPacks(packs []*Pack) error {
	if len(packs) > MaxPacks {
		return fmt.Errorf("%d packs at once: %w: at most %d", len(packs), ErrRefused, MaxPacks)
	}
	for _, p := range packs {
		id, err := id16("pack", p.GetId())
		if err != nil {
			return err
		}
		if s.Doomed[id] || s.Moved[id] != nil {
			if _, there := s.Packs[id]; !there {
				return fmt.Errorf("pack %x: %w: it was dropped", id, ErrGone)
			}
		}
		if p.GetSize() < 0 || p.GetSize() > maxRaw || p.GetRaw() < 0 || p.GetRaw() > maxRaw || p.GetRecords() < 0 || p.GetRecords() > 65535 ||
			p.GetGeneration() < 1 || p.GetGeneration() > s.Generation {
			return fmt.Errorf("pack %x: %w: its size, records or data key are impossible", id, ErrRefused)
		}
	}
	return nil
}

func (s *State) checkCommit(c *Commit) error {
	if _, err := s.writer(c.GetSession()); err != nil {
		return err
	}
	if err := s.checkPacks(c.GetPacks()); err != nil {
		return err
	}
	if len(c.GetPoints()) > MaxPoints {
		return fmt.Errorf("%d points at once: %w: at most %d", len(c.GetPoints()), ErrRefused, MaxPoints)
	}
	now := map[[16]byte]bool{}
	for _, p := range c.GetPacks() {
		now[[16]byte(p.GetId())] = true
	}
	seen := map[[16]byte]bool{}
	for _, p := range c.GetPoints() {
		id, err := id16("point", p.GetId())
		if err != nil {
			return err
		}
		if s.Points[id] != nil || seen[id] {
			return fmt.Errorf("point %x: %w", id, ErrExists)
		}
		seen[id] = true
		if err := s.checkPoint(p, now); err != nil {
			return fmt.Errorf("point %x: %w", id, err)
		}
	}
	return nil
}

func (s *State) checkPoint(p *Point, now map[[16]byte]bool) error {
	if len(p.GetDisks()) > MaxPoints || len(p.GetVm()) > maxText || len(p.GetVmUid()) > maxText {
		return fmt.Errorf("%w: it has too many disks or too long a name", ErrRefused)
	}
	if err := checkLabels(p.GetLabels()); err != nil {
		return err
	}
	places := []*Place{p.GetDescription()}
	for _, d := range p.GetDisks() {
		if d.GetSize() < 0 || d.GetLevel() < 0 || d.GetLevel() > 8 || len(d.GetName()) > maxText {
			return fmt.Errorf("%w: a disk of it is impossible", ErrRefused)
		}
		places = append(places, d.GetRoot())
	}
	for _, l := range places {
		if len(l.GetId()) == 0 && len(l.GetPack()) == 0 {
			continue
		}
		id, err := id16("pack", l.GetPack())
		if err != nil {
			return err
		}
		if len(l.GetId()) != 32 || l.GetRecord() < 0 || l.GetRecord() > 65534 {
			return fmt.Errorf("%w: a place of it is impossible", ErrRefused)
		}
		if _, there := s.Packs[id]; !there && !now[id] && s.Moved[id] == nil {
			return fmt.Errorf("its pack %x: %w", id, ErrGone)
		}
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	n := 0
	for k, v := range labels {
		n += len(k) + len(v)
	}
	if len(labels) > 256 || n > 64<<10 {
		return fmt.Errorf("%w: too many labels", ErrRefused)
	}
	return nil
}

func (s *State) checkForget(f *Forget) error {
	if len(f.GetPoints()) > MaxPacks {
		return fmt.Errorf("%d points at once: %w: at most %d", len(f.GetPoints()), ErrRefused, MaxPacks)
	}
	for _, p := range f.GetPoints() {
		id, err := id16("point", p)
		if err != nil {
			return err
		}
		if o := s.Points[id]; o != nil && o.Keep {
			return fmt.Errorf("point %x: %w", id, ErrKept)
		}
	}
	return nil
}

func (s *State) checkCondemn(c *Condemn) error {
	if c.GetSeen() > s.Seq || len(c.GetPacks()) > MaxPacks {
		return fmt.Errorf("condemn: %w: too many packs, or a walk that can not have been", ErrRefused)
	}
	if err := s.checkPacks(c.GetAdded()); err != nil {
		return err
	}
	added := map[[16]byte]bool{}
	for _, p := range c.GetAdded() {
		added[[16]byte(p.GetId())] = true
	}
	condemned := map[[16]byte]bool{}
	for _, m := range c.GetPacks() {
		id, err := id16("pack", m.GetPack())
		if err != nil {
			return err
		}
		p, ok := s.Packs[id]
		switch {
		case !ok:
			return fmt.Errorf("pack %x: %w", id, ErrGone)
		case p.Condemned != 0 || condemned[id] || added[id]:
			return fmt.Errorf("pack %x: %w: it is condemned already", id, ErrRefused)
		case p.Added > c.GetSeen():
			return fmt.Errorf("pack %x: %w: it came after the walk", id, ErrRefused)
		}
		condemned[id] = true
	}
	for _, m := range c.GetPacks() {
		if len(m.GetTo()) > 1024 {
			return fmt.Errorf("condemn: %w: a pack was moved to too many", ErrRefused)
		}
		for _, t := range m.GetTo() {
			to, err := id16("pack", t)
			if err != nil {
				return err
			}
			if p, ok := s.Packs[to]; condemned[to] || !added[to] && (!ok || p.Condemned != 0) {
				return fmt.Errorf("pack %x, moved to: %w: it is not there or condemned", to, ErrRefused)
			}
		}
	}
	return nil
}

func (s *State) checkReprieve(r *Packs) error {
	for _, p := range r.GetPacks() {
		id, err := id16("pack", p)
		if err != nil {
			return err
		}
		if _, ok := s.Packs[id]; !ok {
			return fmt.Errorf("pack %x: %w: it was dropped", id, ErrGone)
		}
	}
	return nil
}

func (s *State) checkDrop(d *Drop) error {
	if d.GetSeen() > s.Seq {
		return fmt.Errorf("drop: %w: a walk that can not have been", ErrRefused)
	}
	for _, b := range d.GetPacks() {
		id, err := id16("pack", b)
		if err != nil {
			return err
		}
		if s.Doomed[id] {
			continue
		}
		p, ok := s.Packs[id]
		if !ok {
			return fmt.Errorf("pack %x: %w", id, ErrGone)
		}
		if p.Condemned == 0 {
			return fmt.Errorf("pack %x: %w: it is live", id, ErrRefused)
		}
		c := s.Condemns[p.Condemned]
		if c == nil {
			return fmt.Errorf("pack %x: %w: nothing is known of its condemn", id, ErrRefused)
		}
		if len(c.Open) > 0 {
			return fmt.Errorf("pack %x: %w: %d sessions that may refer to it are open", id, ErrRefused, len(c.Open))
		}
		if p.Condemned > d.GetSeen() {
			return fmt.Errorf("pack %x: %w: the walk (%d) came before the condemn (%d)", id, ErrRefused, d.GetSeen(), p.Condemned)
		}
		if c.LastCommit > d.GetSeen() {
			return fmt.Errorf("pack %x: %w: a commit (%d) came after the walk (%d)", id, ErrRefused, c.LastCommit, d.GetSeen())
		}
	}
	for _, b := range d.GetOrphans() {
		id, err := id16("pack", b)
		if err != nil {
			return err
		}
		if _, ok := s.Packs[id]; ok {
			return fmt.Errorf("pack %x: %w: it is no orphan", id, ErrRefused)
		}
	}
	return nil
}

func (s *State) checkDropped(d *Packs) error {
	for _, b := range d.GetPacks() {
		id, err := id16("pack", b)
		if err != nil {
			return err
		}
		if _, ok := s.Packs[id]; ok {
			return fmt.Errorf("pack %x: %w: it was not dropped", id, ErrRefused)
		}
	}
	return nil
}

// apply changes the state. Check has passed, and Seq is t's number.
func (s *State) apply(t *Transaction) {
	switch k := t.GetKind().(type) {
	case nil:
		s.Newer = true
	case *Transaction_Begin:
		b := k.Begin
		o := &SessionState{ID: [16]byte(b.GetSession()), Reader: b.GetReader(), Purpose: b.GetPurpose(), Began: s.Seq}
		for _, p := range b.GetPins() {
			o.Pins = append(o.Pins, [16]byte(p))
		}
		s.Sessions[o.ID] = o
		s.touch(b.GetSession(), t)
	case *Transaction_Add:
		s.add(k.Add.GetPacks())
		s.touch(k.Add.GetSession(), t)
	case *Transaction_Commit:
		s.applyCommit(k.Commit, t)
	case *Transaction_End:
		s.end([16]byte(k.End.GetSession()))
	case *Transaction_Forget:
		for _, b := range k.Forget.GetPoints() {
			id := [16]byte(b)
			if p := s.Points[id]; p != nil {
				gone := *p
				gone.Forgotten = s.Seq
				s.Forgotten = append(s.Forgotten, &gone)
				delete(s.Points, id)
			}
		}
		s.purge()
	case *Transaction_Condemn:
		s.applyCondemn(k.Condemn)
	case *Transaction_Reprieve:
		for _, b := range k.Reprieve.GetPacks() {
			id := [16]byte(b)
			p := s.Packs[id]
			p.Condemned = 0
			s.Packs[id] = p
			delete(s.Moved, id)
		}
		s.purgeCondemns()
	case *Transaction_Drop:
		for _, list := range [][][]byte{k.Drop.GetPacks(), k.Drop.GetOrphans()} {
			for _, b := range list {
				delete(s.Packs, [16]byte(b))
				s.Doomed[[16]byte(b)] = true
			}
		}
		s.purgeCondemns()
	case *Transaction_Dropped:
		for _, b := range k.Dropped.GetPacks() {
			delete(s.Doomed, [16]byte(b))
		}
	case *Transaction_Rotate:
		s.Generation = k.Rotate.GetGeneration()
	case *Transaction_Mark:
		s.applyMark(k.Mark, t)
	case *Transaction_Require:
		s.MinWriter, s.MinReclaim = k.Require.GetWriter(), k.Require.GetCollector()
	case *Transaction_Keep:
		s.applyKeep(k.Keep)
	}
}

func (s *State) touch(session []byte, t *Transaction) {
	if o := s.Sessions[[16]byte(session)]; o != nil {
		o.Last = s.Seq
		o.Time = t.GetTime().AsTime()
	}
}

func (s *State) add(packs []*Pack) {
	for _, p := range packs {
		id := [16]byte(p.GetId())
		if _, again := s.Packs[id]; again {
			continue
		}
		s.Packs[id] = PackState{Size: p.GetSize(), Raw: p.GetRaw(), Records: p.GetRecords(), Generation: p.GetGeneration(), Meta: p.GetMeta(), Dense: p.GetDense(), Added: s.Seq}
	}
}

func (s *State) applyCommit(c *Commit, t *Transaction) {
	session := [16]byte(c.GetSession())
	s.add(c.GetPacks())
	for _, p := range c.GetPoints() {
		s.Points[[16]byte(p.GetId())] = &PointState{Point: p, Committed: s.Seq}
	}
	for _, g := range s.Condemns {
		if g.Open[session] {
			g.LastCommit = s.Seq
		}
	}
	s.touch(c.GetSession(), t)
	if !c.GetMore() {
		s.end(session)
	}
}

func (s *State) end(session [16]byte) {
	if s.Sessions[session] == nil {
		return
	}
	delete(s.Sessions, session)
	for _, g := range s.Condemns {
		delete(g.Open, session)
	}
	s.purge()
}

func (s *State) applyCondemn(c *Condemn) {
	s.add(c.GetAdded())
	g := &CondemnState{Open: map[[16]byte]bool{}}
	for id := range s.Sessions {
		g.Open[id] = true
	}
	for _, m := range c.GetPacks() {
		id := [16]byte(m.GetPack())
		p := s.Packs[id]
		p.Condemned = s.Seq
		s.Packs[id] = p
		if len(m.GetTo()) > 0 {
			var to [][16]byte
			for _, t := range m.GetTo() {
				to = append(to, [16]byte(t))
			}
			s.Moved[id] = to
		}
	}
	if len(c.GetPacks()) > 0 {
		s.Condemns[s.Seq] = g
	}
}

// purgeCondemns forgets condemns none of whose packs are left.
func (s *State) purgeCondemns() {
	left := map[int64]bool{}
	for _, p := range s.Packs {
		if p.Condemned != 0 {
			left[p.Condemned] = true
		}
	}
	for seq := range s.Condemns {
		if !left[seq] {
			delete(s.Condemns, seq)
		}
	}
}

func (s *State) applyMark(m *Mark, t *Transaction) {
	o := proto.Clone(m).(*Mark)
	o.Time = t.GetTime()
	s.Marks[m.GetWhat()] = o
	set := func(list [][]byte, damaged bool) {
		for _, b := range list {
			if p, ok := s.Packs[[16]byte(b)]; ok {
				p.Damaged = damaged
				s.Packs[[16]byte(b)] = p
			}
		}
	}
	set(m.GetDamaged(), true)
	set(m.GetRepaired(), false)
}

func (s *State) applyKeep(k *Keep) {
	id := [16]byte(k.GetPoint())
	o := *s.Points[id]
	o.Keep = k.GetKeep()
	if len(k.GetLabels()) > 0 {
		p := proto.Clone(o.Point).(*Point)
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		for name, v := range k.GetLabels() {
			if v == "" {
				delete(p.Labels, name)
			} else {
				p.Labels[name] = v
			}
		}
		o.Point = p
	}
	s.Points[id] = &o
}

func id16(what string, b []byte) ([16]byte, error) {
	if len(b) != 16 {
		return [16]byte{}, fmt.Errorf("%s %s: %w: an id has 16 bytes", what, hex.EncodeToString(b[:min(len(b), 32)]), ErrRefused)
	}
	return [16]byte(b), nil
}

func all16(what string, ids [][]byte) error {
	if len(ids) > MaxPacks {
		return fmt.Errorf("%d ids of %ss at once: %w: at most %d", len(ids), what, ErrRefused, MaxPacks)
	}
	for _, b := range ids {
		if _, err := id16(what, b); err != nil {
			return err
		}
	}
	return nil
}
