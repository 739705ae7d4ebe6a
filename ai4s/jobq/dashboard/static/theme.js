// Light, dark or as the system says; set before the first paint, so that a dark page never flashes white.
// A classic script on purpose: modules run after the page is parsed.
(() => {
  const choices = ['auto', 'light', 'dark'];
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem('jobq-theme');
    } catch {
      return null; // storage is switched off in this browser: the choice then lasts as long as the page
    }
  }

  function set(choice) {
    root.dataset.theme = choices.includes(choice) ? choice : 'auto';
    try {
      localStorage.setItem('jobq-theme', root.dataset.theme);
    } catch {
      // see stored()
    }
  }

  root.dataset.theme = choices.includes(stored()) ? stored() : 'auto';

  document.addEventListener('DOMContentLoaded', () => {
    const button = document.getElementById('theme');
    const name = () => {
      button.textContent = `Theme: ${root.dataset.theme}`;
    };
    name();
    button.addEventListener('click', () => {
      set(choices[(choices.indexOf(root.dataset.theme) + 1) % choices.length]);
      name();
      document.dispatchEvent(new Event('jobq-theme'));
    });
  });
})();
