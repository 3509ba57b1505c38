// Live chat's one component: microphone in, answer out. Both are here so that a barge-in is quiet before the server knows.
(() => {
  const RATE = 16000;           // Hz sent to the server
  const FRAME = 320;            // samples the worklet reports at a time: 20 ms
  const FRAMES_PER_CHUNK = 12;  // 240 ms: every event costs Gradio's page some 50 ms, whatever it carries
  const MAX_UNHEARD = 13;       // chunks sent that the server has not confirmed: 3 s; then wait and join
  const MAX_WAITING = 250;      // frames kept while waiting (5 s); older speech is dropped and the person is told
  const DUCK_FRAMES = 3;        // 60 ms of loud frames make a duck
  const DUCK_MS = 700;          // back to full loudness unless the server confirms
  const MIN_LOUD = 0.012;       // RMS; quieter than this is nobody speaking to the page
  const OVER_FLOOR = 4;         // 12 dB

  // Runs on the audio thread: down to 16 kHz where the browser refused that rate (windowed sinc, so that nothing folds
  // back), cut into frames of int16 with their RMS.
  const WORKLET = `
    registerProcessor('parley-microphone', class extends AudioWorkletProcessor {
      constructor() {
        super();
        this.step = sampleRate / ${RATE};
        this.reach = this.step === 1 ? 0 : Math.ceil(8 * this.step);
        this.kept = new Float32Array(2 * this.reach);
        this.at = this.reach;
        this.frame = new Int16Array(${FRAME});
        this.filled = 0;
        this.energy = 0;
      }
      process([[samples]]) {
        if (!samples) return true;
        if (this.step === 1) { for (const sample of samples) this.put(sample); return true; }
        const all = new Float32Array(this.kept.length + samples.length);
        all.set(this.kept); all.set(samples, this.kept.length);
        for (; this.at + this.reach < all.length; this.at += this.step) {
          const middle = Math.floor(this.at);
          let sum = 0, weight = 0;
          for (let k = middle - this.reach + 1; k <= middle + this.reach; k++) {
            const x = (k - this.at) / this.step, window = 0.5 + 0.5 * Math.cos(Math.PI * (k - this.at) / (this.reach + 1));
            const tap = window * (Math.abs(x) < 1e-9 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
            sum += tap * all[k]; weight += tap;
          }
          this.put(sum / weight);
        }
        const start = Math.max(0, Math.floor(this.at) - this.reach);
        this.kept = all.slice(start);
        this.at -= start;
        return true;
      }
      put(sample) {
        const clipped = Math.max(-1, Math.min(1, sample));
        this.frame[this.filled++] = clipped * 32767;
        this.energy += clipped * clipped;
        if (this.filled < ${FRAME}) return;
        this.port.postMessage({pcm: this.frame, rms: Math.sqrt(this.energy / ${FRAME})}, [this.frame.buffer]);
        this.frame = new Int16Array(${FRAME});
        this.filled = this.energy = 0;
      }
    });`;

  class Microphone {
    // onframe({pcm: Int16Array, rms}) every 20 ms; onlost() when the device goes away.
    async open(onframe, onlost) {
      if (!window.isSecureContext || !navigator.mediaDevices) throw {name: 'InsecureContext'};
      const opening = this.opening = Symbol('opening');
      const stream = await navigator.mediaDevices.getUserMedia(
        {audio: {channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true}});
      if (this.opening !== opening) { stream.getTracks().forEach(track => track.stop()); return false; }   // closed meanwhile
      this.stream = stream;
      let source;
      try {
        this.context = new AudioContext({sampleRate: RATE});
        source = this.context.createMediaStreamSource(stream);
      } catch (refused) {
        this.context?.close();
        this.context = new AudioContext();
        source = this.context.createMediaStreamSource(stream);
      }
      const url = URL.createObjectURL(new Blob([WORKLET], {type: 'text/javascript'}));
      try { await this.context.audioWorklet.addModule(url); } finally { URL.revokeObjectURL(url); }
      if (this.opening !== opening) return false;
      this.node = new AudioWorkletNode(this.context, 'parley-microphone', {numberOfInputs: 1, numberOfOutputs: 0});
      this.node.port.onmessage = event => onframe(event.data);
      source.connect(this.node);
      stream.getAudioTracks()[0].addEventListener('ended', onlost);
      if (this.context.state === 'suspended') await this.context.resume();
      return true;
    }

    close() {
      this.opening = null;
      if (this.node) { this.node.port.onmessage = null; this.node.disconnect(); }
      this.stream?.getTracks().forEach(track => track.stop());
      this.context?.close();
      this.node = this.stream = this.context = null;
    }
  }

  const TROUBLE = {NotAllowedError: 'denied', SecurityError: 'denied', NotFoundError: 'no_device', OverconstrainedError: 'no_device',
                   NotReadableError: 'busy_device', AbortError: 'busy_device', InsecureContext: 'insecure'};

  function base64(frames) {
    let text = '';
    for (const frame of frames) for (const byte of new Uint8Array(frame.buffer)) text += String.fromCharCode(byte);
    return btoa(text);
  }

  window.parley.live = (element, props, watch, trigger, events) => {
    const {PcmPlayer, bars, language} = window.parley;
    const words = props.words[language()];
    const part = name => element.querySelector(`[data-part=${name}]`);
    const root = part('live'), button = part('button'), label = part('label'), hint = part('hint'), note = part('note');
    const microphone = new Microphone(), player = new PcmPlayer(show);
    const stats = {opened: 0, chunks: 0, frames: 0, dropped: 0, ducks: 0, confirmed: 0, lastDuck: null, rate: 0};
    let on = false, starting = false, held = false, mode = 'free', server = 'listening';
    let seq = 0, waiting = [], floor = 0.004, loud = 0, level = 0, duckTimer = null, visit = '', confirmed = 0;
    const animate = bars(part('bars'), () => Math.max(level, player.level()), () => on);

    const state = () => starting ? 'starting' : !on ? 'idle' : player.state === 'playing' ? 'speaking'
      : server === 'thinking' || player.state === 'waiting' ? 'thinking' : 'listening';

    function show() {
      const now = state();
      if (root.dataset.state !== now) {
        root.dataset.state = now;
        label.textContent = words[`live_${now}`];
      }
      root.dataset.mode = mode;
      root.dataset.held = String(held);
      button.textContent = on && mode === 'push' ? words.live_push : on || starting ? words.live_end : words.live_start;
      part('end').hidden = !(on && mode === 'push');
      hint.textContent = on && mode === 'push' ? words.live_push_hint : words.live_keys;
      part('modes').querySelectorAll('button').forEach(choice => choice.setAttribute('aria-pressed', String(choice.dataset.mode === mode)));
      part('blocked').hidden = player.state !== 'blocked';
    }

    const tell = text => { note.textContent = text ?? ''; note.hidden = !text; };

    async function open() {
      if (on || starting) return;
      starting = true;
      tell();
      show();
      try {
        if (!await microphone.open(onframe, () => { close(); tell(words.live_lost); })) return;
        on = true;
        visit = crypto.randomUUID?.() ?? String(Math.random());
        seq = confirmed = 0; waiting = []; server = 'listening';
        stats.opened += 1;
        stats.rate = microphone.context.sampleRate;
        trigger('start', {visit, mode});
        animate();
      } catch (error) {
        microphone.close();
        const kind = TROUBLE[error?.name];
        if (!kind) console.error(error);
        tell(words[`live_${kind ?? 'lost'}`]);
        trigger('trouble', {kind: kind ?? 'lost'});
      } finally {
        starting = false;
        show();
      }
    }

    function close() {
      const was = on;
      if (was && held) release();
      microphone.close();
      on = starting = held = false;
      level = 0;
      waiting = [];
      unduck();
      player.silence();
      if (was) trigger('stop', {visit});
      show();
    }

    function onframe({pcm, rms}) {
      if (!on) return;
      stats.frames += 1;
      level = Math.min(1, 4 * rms);
      listenForBargeIn(rms);
      if (mode === 'push' && !held) return;
      waiting.push(pcm);
      if (waiting.length >= FRAMES_PER_CHUNK) send(false);
    }

    // The floor falls fast and rises slowly: it follows the room and what the echo canceller leaves of the answer.
    function listenForBargeIn(rms) {
      const above = rms > Math.max(MIN_LOUD, OVER_FLOOR * floor);
      floor += (rms - floor) * (rms < floor ? 0.2 : above ? 0.001 : 0.02);
      loud = above ? loud + 1 : 0;
      if (loud >= DUCK_FRAMES && player.state === 'playing' && !player.ducked && (mode === 'free' || held)) duck();
    }

    function duck() {
      stats.ducks += 1;
      stats.lastDuck = Date.now();
      player.tune({ducked: true}, 0.008);
      clearTimeout(duckTimer);
      duckTimer = setTimeout(unduck, DUCK_MS);
    }
    function unduck() { clearTimeout(duckTimer); if (player.ducked) player.tune({ducked: false}, 0.05); }

    // One chunk, unless the server is behind: then frames wait and go out joined, and the oldest are given up.
    function send(end) {
      if (!end && seq - confirmed >= MAX_UNHEARD) {
        const over = waiting.length - MAX_WAITING;
        if (over > 0) { waiting.splice(0, over); stats.dropped += over; tell(words.live_slow); }
        return;
      }
      seq += 1;
      stats.chunks += 1;
      trigger('chunk', {visit, seq, pcm: base64(waiting), mode, end, playing: player.state === 'playing', sent: Date.now()});
      waiting = [];
    }

    function press() {
      if (!on || mode !== 'push' || held) return;
      held = true;
      waiting = [];
      interrupt();
      show();
    }
    function release() {
      if (!held) return;
      held = false;
      send(true);
      show();
    }
    function interrupt() {
      const stream = player.stream;
      if (!['playing', 'waiting', 'blocked'].includes(player.state)) return;
      player.silence();
      trigger('interrupt', {visit, stream});
    }

    button.addEventListener('click', () => { if (!on && !starting) open(); else if (mode === 'free') close(); });
    button.addEventListener('pointerdown', event => { if (on && mode === 'push') { button.setPointerCapture(event.pointerId); press(); } });
    for (const up of ['pointerup', 'pointercancel']) button.addEventListener(up, release);
    part('end').addEventListener('click', close);
    part('blocked').addEventListener('click', show);
    part('modes').addEventListener('click', event => {
      const wish = event.target.closest('button')?.dataset.mode;
      if (!wish || wish === mode) return;
      release();
      mode = wish;
      waiting = [];
      show();
    });

    const visible = () => element.isConnected && root.offsetParent !== null;
    const typing = target => target.closest?.('input, textarea, select, [contenteditable]');
    document.addEventListener('keydown', event => {
      if (!visible() || typing(event.target)) return;
      if (event.key === 'Escape') return interrupt();
      if (event.code !== 'Space' || (event.target.closest?.('button, a, [role=tab]') && event.target !== button)) return;
      event.preventDefault();
      if (event.repeat) return;
      if (!on) open();
      else if (mode === 'push') press();
      else interrupt();
    });
    document.addEventListener('keyup', event => { if (event.code === 'Space') { if (event.target === button) event.preventDefault(); release(); } });
    window.addEventListener('blur', release);
    window.addEventListener('pagehide', close);

    watch('value', () => {
      const value = props.value;
      if (!value) return;
      player.accept(value);
      if (value.flush) { stats.confirmed += 1; unduck(); }
      if (value.state && !player.silenced.has(value.stream)) server = value.state;   // a dropped answer has no say
      show();
    });
    watch('heard', () => { if (props.heard?.visit === visit) confirmed = Math.max(confirmed, props.heard.seq); });
    player.mic = {stats, get state() { return state(); }, get floor() { return floor; }, onframe, open, close};
    show();
    animate();
  };
})();
