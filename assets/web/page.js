// The page's head (language switch, big type) and the button that plays a voice's sample.
(() => {
  const root = document.documentElement;
  if (localStorage.getItem('parley_stage') === 'on') root.classList.add('parley-stage');

  function choose(code) {
    const secure = location.protocol === 'https:';
    // Inside a frame of another site (a Space) a cookie needs SameSite=None; where even that is refused, the address keeps it.
    document.cookie = `parley_language=${code}; path=/; max-age=31536000; ` + (secure ? 'SameSite=None; Secure; Partitioned' : 'SameSite=Lax');
    const url = new URL(location.href);
    url.searchParams.set('language', code);
    location.replace(url);
  }

  // On a phone the answer is below what was given: show it once it is asked for.
  document.addEventListener('click', event => {
    const columns = event.target.closest?.('.parley-run button.primary')?.closest('.parley-columns');
    if (columns && matchMedia('(max-width: 720px)').matches) columns.querySelector('.parley-answer')?.scrollIntoView({block: 'start'});
  });

  // Escape presses the Stop that is in sight, unless it closes a list.
  document.addEventListener('keydown', event => {
    if (event.key !== 'Escape' || event.target.closest?.('[aria-expanded=true]')) return;
    [...document.querySelectorAll('.parley-run button.secondary')].find(stop => stop.checkVisibility())?.click();
  });

  // A new badge redraws the whole head: clicks are caught at its root, and what is pressed is shown again each time.
  window.parley.head = (element, props, watch) => {
    const words = props.words[window.parley.language()];
    const show = () => {
      const stage = element.querySelector('[data-part=stage]'), languages = element.querySelector('[data-part=languages]');
      stage.title = words.stage_hint;
      stage.setAttribute('aria-pressed', String(root.classList.contains('parley-stage')));
      languages.setAttribute('aria-label', words.language);
      for (const button of languages.children) {
        button.setAttribute('aria-pressed', String(button.dataset.code === window.parley.language()));
      }
    };
    element.addEventListener('click', event => {
      const button = event.target.closest('button');
      if (button?.dataset.part === 'stage') {
        localStorage.setItem('parley_stage', root.classList.toggle('parley-stage') ? 'on' : 'off');
        show();
      } else if (button?.dataset.code) choose(button.dataset.code);
    });
    watch('value', () => requestAnimationFrame(show));
    show();
  };

  window.parley.sample = (element, props, watch) => {
    const button = element.querySelector('button'), audio = new Audio();
    const show = () => { button.hidden = !props.value; };
    const playing = on => button.setAttribute('aria-pressed', String(on));
    button.addEventListener('click', () => {
      if (!audio.paused) return audio.pause();
      window.parleyPlayers.silence();
      audio.src = `${window.gradio_config?.root ?? ''}/gradio_api/file=${props.value}`;
      audio.play();
    });
    audio.addEventListener('play', () => playing(true));
    for (const end of ['pause', 'ended', 'error']) audio.addEventListener(end, () => playing(false));
    document.addEventListener('parley-silence', () => audio.pause());
    watch('value', () => { audio.pause(); show(); });
    show();
  };
})();
